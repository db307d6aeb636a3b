"""What hookedvid costs beside other ways to the same numbers; `python -m benchmarks` writes RESULTS.md."""
