"""Small corpora by speech synthesis (:mod:`eval.data.mini`) and what is there on disk (:mod:`eval.data.inventory`);
parsers: star_upstream.data.corpora."""
