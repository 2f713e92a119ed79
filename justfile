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

# The ratio of the tree to a bare stream, and of the store to a bare file.
bench:
    cargo bench --bench throughput
    cargo bench --bench store

# What a node costs that has so many requests behind it.
ageing requests="1000000":
    cargo run --release --example ageing -- --requests {{ requests }} --json

demo *args:
    cargo run --release -- demo {{ args }}
