"""What finished runs say together; reads run directories, never models."""
