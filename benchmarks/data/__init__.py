"""The data that is measured: files, corpora, cases, and listings of trees."""
