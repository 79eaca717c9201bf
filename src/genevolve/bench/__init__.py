"""The benchmark: KScore summaries, paired statistics and the report.."""
