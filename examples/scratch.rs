use elman::{
    kernels::{self, matmul::t, rnn_backward::Incoming},
    *,
};
fn main() {
    let d = Device::open("gpu").unwrap();
    let (tt, b, h, v) = (8usize, 512usize, 256usize, 85usize);
    let z = |n: &str, s: &[usize]| d.zeros(n, s, DType::F32).unwrap();
    let x = z("x", &[v, h]);
    let idx = d.upload_u32("i", &[tt, b], &(0..tt * b).map(|i| ((i * i / 7) % v) as u32).collect::<Vec<_>>()).unwrap();
    let w = z("w", &[h, h]);
    let hh = z("h", &[tt + 1, b, h]);
    let dx = z("dx", &[tt, b, h]);
    let dh0 = z("dh0", &[b, h]);
    let dhn = z("dhn", &[b, h]);
    let hn = z("hn", &[b, h]);
    let wo = z("wo", &[v, h]);
    let lg = z("lg", &[b, v]);
    let dlg = z("dlg", &[b, v]);
    let dwo = z("dwo", &[v, h]);
    let dw = z("dw", &[h, h]);
    let dt = z("dt", &[v, h]);
    let hs = z("hs", &[tt, b, h]);
    let tg = d.upload_u32("t", &[b], &vec![3; b]).unwrap();
    let sc = z("sc", &[1]);
    let ls = z("ls", &[b]);
    let time = |name: &str, f: &dyn Fn(&mut Graph) -> Result<()>| {
        let mut g = Graph::without_parameters(&d);
        f(&mut g).unwrap();
        let p = g.finish().unwrap();
        p.run().unwrap();
        d.synchronize().unwrap();
        let s = std::time::Instant::now();
        for _ in 0..3 {
            p.run().unwrap();
        }
        d.synchronize().unwrap();
        println!("{name:20} {:8.1} ms", s.elapsed().as_secs_f64() * 1e3 / 3.0);
    };
    time("rnn_forward", &|g| kernels::rnn_forward::rnn_forward(g, &x, &idx, &w, &hh));
    time("rnn_backward", &|g| {
        kernels::rnn_backward::rnn_backward(g, &w, &hh, Incoming { dy: None, dh_n: Some(&dhn) }, &dx, &dh0)
    });
    time("logits", &|g| kernels::matmul::matmul(g, &hn, t(&wo), None, &lg, false));
    time("dh", &|g| kernels::matmul::matmul(g, &dlg, &wo, None, &dhn, false));
    time("dwo", &|g| kernels::matmul::matmul(g, t(&dlg), &hn, None, &dwo, false));
    time("dw", &|g| kernels::matmul::matmul(g, t(&dx), &hs, None, &dw, false));
    time("segment_sum", &|g| kernels::segment_sum::segment_sum(g, &dx, &idx, &dt, false));
    time("ce", &|g| kernels::cross_entropy::cross_entropy(g, &lg, &tg, &sc, &ls, Some(&dlg)));
    time("swap", &|g| kernels::swap_axes::swap_axes(g, &w, &dw));
}
