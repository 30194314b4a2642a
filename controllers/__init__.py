"""Controllers: algorithms behind one registry, and the HTTP service that answers with them."""
