"""Method folders on the Hugging Face Hub."""
