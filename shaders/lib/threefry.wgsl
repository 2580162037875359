// Counter-based random words: `rng::threefry2x32` on the host.
fn rotate_left(x: u32, by: u32) -> u32 {
    return (x << by) | (x >> (32u - by));
}

// The first of the two words of Threefry-2x32-20.
fn threefry(key: vec2<u32>, count: vec2<u32>) -> u32 {
    var rotations = array<u32, 8>(13u, 15u, 26u, 6u, 17u, 29u, 16u, 24u);
    var keys = array<u32, 3>(key.x, key.y, key.x ^ key.y ^ 0x1bd11bdau);
    var x = count + key;
    for (var round = 0u; round < 20u; round++) {
        x.x += x.y;
        x.y = rotate_left(x.y, rotations[round % 8u]) ^ x.x;
        if round % 4u == 3u {
            let injection = round / 4u + 1u;
            x.x += keys[injection % 3u];
            x.y += keys[(injection + 1u) % 3u] + injection;
        }
    }
    return x.x;
}
