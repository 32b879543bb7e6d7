//! Stage 4: carries streams between nodes over HTTP/2 CONNECT and mutual TLS.

pub mod tls;
