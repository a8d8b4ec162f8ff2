"""One file per method; `ls` here is the table of contents."""
