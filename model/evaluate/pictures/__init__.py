"""What published networks say of the pictures of a film."""
