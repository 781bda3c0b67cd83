"""One training loop for every loss. It knows losses by their interface only; reports and files are handed in."""
