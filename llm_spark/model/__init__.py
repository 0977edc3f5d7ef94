"""The network, its losses, and the artifact it is kept in. Torch only: no Spark, Delta or Petastorm here."""
