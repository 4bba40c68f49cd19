"""What is heard: the stage, the network that tells speech, singing and music, and the one that rates speech."""
