//! Ops that work row by row or element by element.
use sdrrl::ops::activation::Activation;

use super::{cases::*, *};

rows! {
    embedding_forward {
        names: "N C V",
        measured: &[(&[8192, 4096, 32000], BF16)],
        checked: &[&[5, 40, 11]],
        work: |d, t| elements(2 * d[0] * d[1], t),
        exact: true,
        make: embedding,
    }
    embedding_backward {
        names: "N C V",
        measured: &[(&[8192, 576, 49152], BF16)],
        checked: &[&[5, 40, 11]],
        work: |d, t| Work::Bytes((d[0] * d[1] * (t.bytes() + 8)) as f64),
        rows_alone: false,
        make: embedding_back,
    }
    rmsnorm_forward {
        names: "N C",
        measured: &[(&[8192, 4096], BOTH)],
        checked: &[&[3, 72]],
        dtypes: BOTH,
        work: |d, t| elements(2 * d[0] * d[1], t),
        make: rmsnorm,
    }
    add_rmsnorm_forward {
        names: "N C",
        measured: &[(&[8192, 4096], BF16)],
        checked: &[&[3, 72]],
        work: |d, t| elements(4 * d[0] * d[1], t),
        make: add_rmsnorm,
    }
    rmsnorm_backward {
        names: "N C",
        measured: &[(&[8192, 4096], BF16)],
        checked: &[&[3, 72]],
        work: |d, t| elements(4 * d[0] * d[1], t),
        make: |w, d| rmsnorm_back(w, d, false),
    }
    rmsnorm_backward_dweight {
        names: "N C",
        measured: &[(&[8192, 576], BF16)],
        checked: &[&[35, 72]],
        work: |d, t| elements(4 * d[0] * d[1], t),
        rows_alone: false,
        make: |w, d| rmsnorm_back(w, d, true),
    }
    gelu_forward {
        names: "N F",
        measured: &[(&[8192, 4096], BF16)],
        checked: &[&[3, 72]],
        work: |d, t| elements(2 * d[0] * d[1], t),
        make: |w, d| activation(w, d, Activation::Gelu),
    }
    gelu_backward {
        names: "N F",
        measured: &[(&[8192, 4096], BF16)],
        checked: &[&[3, 72]],
        work: |d, t| elements(3 * d[0] * d[1], t),
        make: |w, d| activation_back(w, d, Activation::Gelu),
    }
    relu_forward {
        names: "N F",
        measured: &[(&[8192, 4096], BF16)],
        checked: &[&[3, 72]],
        work: |d, t| elements(2 * d[0] * d[1], t),
        make: |w, d| activation(w, d, Activation::Relu),
    }
    relu_backward {
        names: "N F",
        measured: &[(&[8192, 4096], BF16)],
        checked: &[&[3, 72]],
        work: |d, t| elements(3 * d[0] * d[1], t),
        make: |w, d| activation_back(w, d, Activation::Relu),
    }
    rope_forward {
        names: "N NH HS",
        measured: &[(&[8192, 32, 128], BF16)],
        checked: &[&[5, 2, 16]],
        work: |d, t| elements(2 * d[0] * d[1] * d[2], t),
        make: rope,
    }
    swiglu_forward {
        names: "N F",
        measured: &[(&[8192, 11008], BF16)],
        checked: &[&[3, 72]],
        work: |d, t| elements(3 * d[0] * d[1], t),
        make: swiglu,
    }
    swiglu_backward {
        names: "N F",
        measured: &[(&[8192, 11008], BF16)],
        checked: &[&[3, 72]],
        work: |d, t| elements(5 * d[0] * d[1], t),
        make: swiglu_back,
    }
}
