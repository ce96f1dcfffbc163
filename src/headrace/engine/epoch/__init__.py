"""The epochs of a loader: what is planned, in flight, counted and kept between them."""
