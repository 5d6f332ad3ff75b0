"""posegen: pose-guided human image generation, compared fairly."""
