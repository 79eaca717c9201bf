"""`genevolve ablate`: which part of the method earns its place, with error bars (method.md, sections 4 to 6)."""
