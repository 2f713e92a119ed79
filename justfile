# What CI checks, before you push.
check: fmt clippy docs test features rules

fmt:
    cargo fmt --all --check

clippy:
    cargo clippy --all-targets -- --deny warnings
    cargo clippy --no-default-features -- --deny warnings
    cargo clippy --no-default-features --features cli -- --deny warnings

docs:
    RUSTDOCFLAGS="--deny warnings" cargo doc --no-deps --features testing

test:
    cargo test

# A library for nodes: no arguments, no HTTP server, no signing keys.
features:
    scripts/check-lean

rules:
    scripts/check-rules

# The ratio of the tree to a bare stream.
bench:
    cargo bench --bench throughput

demo *args:
    cargo run --release -- demo {{ args }}
