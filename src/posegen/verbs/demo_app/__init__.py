"""``posegen demo``: every trained method side by side in the browser. `studio` knows no browser; gradio is imported in `page` alone."""
