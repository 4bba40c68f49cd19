"""Picture quality without a reference: the stage, BRISQUE and single faults."""
