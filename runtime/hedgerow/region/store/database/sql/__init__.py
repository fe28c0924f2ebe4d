"""Tables as migrations: `DIALECT/NNNN_title.sql`, applied once each, in order."""
