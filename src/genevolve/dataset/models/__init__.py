"""GenEvolve-Data made with models: who writes requests, who audits, who looks at ground truths (docs/data.md)."""
