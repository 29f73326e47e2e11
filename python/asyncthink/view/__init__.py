"""Episodes for people to look at: on a terminal, as a page. No torch."""
