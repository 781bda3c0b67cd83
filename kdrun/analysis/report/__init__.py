"""kdrun report: one page of HTML that answers a question about runs, offline, for a reader who was not there."""
