"""Whose text a step of training learns: the data's, the teacher's or the student's own, and when."""
