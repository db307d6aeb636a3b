"""Many runs on one video, each part of their work done once."""
