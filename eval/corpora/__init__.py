"""Small corpora by speech synthesis (:mod:`eval.corpora.mini`) and what is there on disk (:mod:`eval.corpora.inventory`); parsers: star_upstream.corpora."""
