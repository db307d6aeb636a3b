"""What edges and activations are worth to a metric, by gradients: what is asked, ways to it, values on the way back."""
