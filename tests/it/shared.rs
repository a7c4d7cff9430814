//! Several daemons on one queue.
