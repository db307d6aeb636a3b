"""Made clips of moving shapes, with questions whose answers are known."""
