"""The public release's files, read and written: GenEvolve-Data-Bench in and out (docs/data.md)."""
