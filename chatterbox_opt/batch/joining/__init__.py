"""What is made of all items of a batch: one file with chapters, a dubbed film, captions."""
