"""The tables, as migrations: `DIALECT/NNNN_title.sql`, carried out in order, once each."""
