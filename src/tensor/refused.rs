//! What must not compile: two handles, slices, two threads. The tests of what may are beside the argument in `tensor.rs`.
//!
//! ```compile_fail
//! # use sdrrl::tensor::Tensor;
//! # let mut t = Tensor::from_f32("t", &[2], &[1.0, 2.0]).unwrap();
//! let mut other = t.clone(); // no Clone
//! ```
//! ```compile_fail
//! # use sdrrl::tensor::Tensor;
//! # let mut t = Tensor::from_f32("t", &[2], &[1.0, 2.0]).unwrap();
//! t.f32_mut().unwrap()[0] = 3.0; // crate-private, as are f32, bf16, u32
//! ```
//! ```compile_fail
//! # use sdrrl::tensor::Tensor;
//! # let t = Tensor::from_f32("t", &[2], &[1.0, 2.0]).unwrap();
//! let (a, b) = (t.rows(0..1).unwrap(), t.rows(0..1).unwrap()); // crate-private
//! ```
//! ```compile_fail
//! # use sdrrl::tensor::Tensor;
//! # let t = Tensor::from_f32("t", &[2], &[1.0, 2.0]).unwrap();
//! let other = t.view(&[1, 2]).unwrap(); // crate-private
//! ```
//! ```compile_fail
//! # use sdrrl::tensor::Tensor;
//! # let mut t = Tensor::from_f32("t", &[2], &[1.0, 2.0]).unwrap();
//! let part = t.slice(0..1).unwrap();
//! t.write_f32(&[0.0; 2]).unwrap(); // borrowed by `part`
//! part.to_f32_vec().unwrap();
//! ```
//! ```compile_fail
//! # use sdrrl::tensor::Tensor;
//! # let t = Tensor::from_f32("t", &[2], &[1.0, 2.0]).unwrap();
//! # let mut other = Tensor::from_f32("t", &[2], &[1.0, 2.0]).unwrap();
//! std::mem::swap(&mut other, &mut *t.slice(0..1).unwrap()); // a view is never `&mut`
//! ```
//! ```compile_fail
//! # use sdrrl::models::transformer::weights::Transformer;
//! fn tied(model: &Transformer) -> f32 {
//!     model.weights.lm_head.f32().unwrap()[0] // no slice of a head that may be the embedding
//! }
//! ```
//! ```compile_fail
//! # use sdrrl::models::transformer::train_step::Param;
//! fn raised(mut param: Param) {
//!     param.value.write_f32(&[0.0]).unwrap(); // crate-private: `Param::write` copies
//! }
//! ```
//! ```compile_fail
//! # use sdrrl::tensor::Tensor;
//! # let mut t = Tensor::from_f32("t", &[2], &[1.0, 2.0]).unwrap();
//! std::thread::scope(|s| { s.spawn(|| t.write_f32(&[0.0; 2])); }); // not Send
//! ```
//! ```compile_fail
//! # use sdrrl::tensor::Tensor;
//! # let t = Tensor::from_f32("t", &[2], &[1.0, 2.0]).unwrap();
//! std::thread::scope(|s| { s.spawn(|| t.to_f32_vec()); }); // not Sync
//! ```
//! ```compile_fail
//! fn moved<T: Send>() {}
//! moved::<sdrrl::models::transformer::weights::Transformer>(); // nor is what holds tensors
//! ```
