"""Running a study: in one process, on a cluster, or only estimated."""
