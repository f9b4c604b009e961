"""How fast and how big: `make bench` against other programs, `make big` with a lot of data and kills in the middle. Linux only."""
