"""What published networks say of what is heard in a film."""
