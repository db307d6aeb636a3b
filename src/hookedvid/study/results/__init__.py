"""From a study's rows to tables and findings."""
