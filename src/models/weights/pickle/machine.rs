//! A pickle machine that can only build plain data, storages and tensors (Python's `pickletools` names the opcodes).
//!
//! Values are nodes of one list and refer to each other by index, so that shared and cyclic data take no copies and no recursion: memory is
//! linear in the length of the pickle.
use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use safetensors::Dtype;

/// The index of a node.
pub type Ref = usize;

/// A value.
#[derive(Debug)]
pub enum Node {
    /// What weights do not need: None, bool, float, bytes, set.
    Other,
    /// An integer of up to 64 bits.
    Int(i64),
    /// A string.
    Text(String),
    /// A tuple or `torch.Size`.
    Tuple(Vec<Ref>),
    /// A list.
    List(Vec<Ref>),
    /// A dict or an OrderedDict, in order.
    Dict(Vec<(Ref, Ref)>),
    /// A global of the list.
    Global(Global),
    /// A storage, by its persistent id.
    Storage(Box<Storage>),
    /// A view of a storage, in elements.
    Tensor(Box<View>),
}

/// See [`Node::Tensor`].
#[derive(Clone, Debug)]
pub struct View {
    pub storage: Ref,
    pub offset: usize,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// The entry `data/KEY` of the archive.
#[derive(Clone, Debug)]
pub struct Storage {
    pub key: String,
    pub dtype: Dtype,
}

/// What a pickle of weights may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    Storage(Dtype),
}

/// No tensor has more dimensions. A longer tuple is not copied: an opcode of two bytes could do so again and again.
const LONGEST_SHAPE: usize = 8;

/// Values, places of the stack, marks and names of the memo that a pickle may have at a time; a checkpoint has some twenty for each tensor.
const MOST: usize = 1 << 21;

/// Longest name of a storage or tensor, for the same reason.
pub const LONGEST_NAME: usize = 512;

/// The list of globals: everything else is refused.
pub fn allowed(module: &str, name: &str) -> Result<Global> {
    Ok(match (module, name) {
        ("collections", "OrderedDict") => Global::OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
        ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
        ("torch", "Size") => Global::Size,
        ("torch", "FloatStorage") => Global::Storage(Dtype::F32),
        ("torch", "HalfStorage") => Global::Storage(Dtype::F16),
        ("torch", "BFloat16Storage") => Global::Storage(Dtype::BF16),
        ("torch", "DoubleStorage") => Global::Storage(Dtype::F64),
        ("torch", "LongStorage") => Global::Storage(Dtype::I64),
        ("torch", "IntStorage") => Global::Storage(Dtype::I32),
        ("torch", "ShortStorage") => Global::Storage(Dtype::I16),
        ("torch", "CharStorage") => Global::Storage(Dtype::I8),
        ("torch", "ByteStorage") => Global::Storage(Dtype::U8),
        ("torch", "BoolStorage") => Global::Storage(Dtype::BOOL),
        _ => bail!(
            "the pickle names {module}.{name}, which weights do not need: refused, nothing was executed; \
             convert the file where you trust it (torch.load, then safetensors.torch.save_file)"
        ),
    })
}

/// The machine's state.
#[derive(Default)]
pub struct Pickle {
    nodes: Vec<Node>,
    stack: Vec<Ref>,
    marks: Vec<usize>,
    memo: HashMap<u64, Ref>,
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let end = end.with_context(|| format!("the pickle ends inside the opcode at byte {}", self.at))?;
        let out = &self.bytes[self.at..end];
        self.at = end;
        Ok(out)
    }
    fn number(&mut self, width: usize) -> Result<u64> {
        Ok(self.take(width)?.iter().rev().fold(0, |n, &b| n << 8 | b as u64))
    }
    /// A length of `width` bytes and as many bytes.
    fn sized(&mut self, width: usize) -> Result<&'a [u8]> {
        let n = usize::try_from(self.number(width)?)?;
        self.take(n)
    }
    fn line(&mut self) -> Result<&'a str> {
        let rest = &self.bytes[self.at..];
        let n = rest.iter().position(|&b| b == b'\n').context("the pickle ends inside a line")?;
        self.at += n + 1;
        std::str::from_utf8(&rest[..n]).context("a line of the pickle is not UTF-8")
    }
}

impl Pickle {
    /// Runs a pickle; returns the machine and its result.
    pub fn run(bytes: &[u8]) -> Result<(Pickle, Ref)> {
        let (mut pickle, mut reader) = (Pickle::default(), Reader { bytes, at: 0 });
        loop {
            let at = reader.at;
            let opcode = reader.take(1)?[0];
            if opcode == b'.' {
                let top = pickle.pop()?;
                return Ok((pickle, top));
            }
            pickle
                .step(opcode, &mut reader)
                .with_context(|| format!("data.pkl, opcode {opcode:#04x} at byte {at}"))?;
            let most = [pickle.nodes.len(), pickle.stack.len(), pickle.marks.len(), pickle.memo.len()];
            ensure!(
                most.iter().all(|n| *n <= MOST),
                "data.pkl builds more than {MOST} values: no list of weights does"
            );
        }
    }

    /// A value.
    pub fn node(&self, r: Ref) -> &Node {
        &self.nodes[r]
    }
    /// The text of a string.
    pub fn text(&self, r: Ref) -> Option<&str> {
        if let Node::Text(s) = self.node(r) { Some(s) } else { None }
    }
    /// The pairs of a dict.
    pub fn dict(&self, r: Ref) -> Option<&[(Ref, Ref)]> {
        if let Node::Dict(d) = self.node(r) { Some(d) } else { None }
    }
    /// A storage.
    pub fn storage(&self, r: Ref) -> Result<&Storage> {
        let Node::Storage(s) = self.node(r) else { bail!("a tensor without a storage") };
        Ok(s)
    }

    fn push(&mut self, node: Node) {
        self.nodes.push(node);
        self.stack.push(self.nodes.len() - 1);
    }
    fn pop(&mut self) -> Result<Ref> {
        let floor = self.marks.last().copied().unwrap_or(0);
        ensure!(self.stack.len() > floor, "the stack is empty");
        self.stack.pop().context("the stack is empty")
    }
    fn top(&self) -> Result<Ref> {
        self.stack.last().copied().context("the stack is empty")
    }
    fn pop_mark(&mut self) -> Result<Vec<Ref>> {
        let mark = self.marks.pop().context("there is no mark")?;
        Ok(self.stack.split_off(mark))
    }
    fn pop_many(&mut self, n: usize) -> Result<Vec<Ref>> {
        let mut out = (0..n).map(|_| self.pop()).collect::<Result<Vec<_>>>()?;
        out.reverse();
        Ok(out)
    }
    fn push_text(&mut self, bytes: &[u8]) {
        self.push(Node::Text(String::from_utf8_lossy(bytes).into_owned()));
    }

    fn step(&mut self, opcode: u8, r: &mut Reader) -> Result<()> {
        match opcode {
            0x80 => ensure!(r.number(1)? <= 5, "protocols up to 5 are known"),
            0x95 => drop(r.take(8)?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.pop_mark()?),
            b'2' => self.stack.push(self.top()?),
            b'N' | 0x88 | 0x89 | 0x8f => self.push(Node::Other),
            b'J' => {
                let n = r.number(4)? as u32 as i32;
                self.push(Node::Int(n.into()));
            }
            b'K' | b'M' => {
                let n = r.number(if opcode == b'K' { 1 } else { 2 })?;
                self.push(Node::Int(n as i64));
            }
            0x8a | 0x8b => {
                let bytes = r.sized(if opcode == 0x8a { 1 } else { 4 })?;
                self.push(long(bytes));
            }
            b'G' => {
                r.take(8)?;
                self.push(Node::Other);
            }
            b'X' | b'T' => self.push_text(r.sized(4)?),
            0x8c | b'U' => self.push_text(r.sized(1)?),
            0x8d => self.push_text(r.sized(8)?),
            b'B' | b'C' | 0x8e => {
                r.sized(match opcode {
                    b'B' => 4,
                    b'C' => 1,
                    _ => 8,
                })?;
                self.push(Node::Other);
            }
            _ => return self.step_structure(opcode, r),
        }
        Ok(())
    }

    fn step_structure(&mut self, opcode: u8, r: &mut Reader) -> Result<()> {
        match opcode {
            b')' => self.push(Node::Tuple(vec![])),
            b't' | b'l' => {
                let items = self.pop_mark()?;
                self.push(if opcode == b't' { Node::Tuple(items) } else { Node::List(items) });
            }
            0x85..=0x87 => {
                let items = self.pop_many((opcode - 0x84) as usize)?;
                self.push(Node::Tuple(items));
            }
            b']' => self.push(Node::List(vec![])),
            b'a' | b'e' | 0x90 => {
                let mut items = if opcode == b'a' { vec![self.pop()?] } else { self.pop_mark()? };
                let to = self.top()?;
                match &mut self.nodes[to] {
                    Node::List(list) => list.append(&mut items),
                    Node::Other if opcode == 0x90 => {}
                    _ => bail!("an item is added to what is no list"),
                }
            }
            b'}' => self.push(Node::Dict(vec![])),
            b'd' => {
                let items = self.pop_mark()?;
                self.push(Node::Dict(pairs(&items)?));
            }
            b's' | b'u' => {
                let items = if opcode == b's' { self.pop_many(2)? } else { self.pop_mark()? };
                let mut new = pairs(&items)?;
                let to = self.top()?;
                let Node::Dict(dict) = &mut self.nodes[to] else { bail!("a key is set in what is no dict") };
                dict.append(&mut new);
            }
            b'h' | b'j' => {
                let key = r.number(if opcode == b'h' { 1 } else { 4 })?;
                let value = *self.memo.get(&key).with_context(|| format!("memo {key} was never set"))?;
                self.stack.push(value);
            }
            b'q' | b'r' => {
                let key = r.number(if opcode == b'q' { 1 } else { 4 })?;
                self.memo.insert(key, self.top()?);
            }
            0x94 => drop(self.memo.insert(self.memo.len() as u64, self.top()?)),
            _ => return self.step_object(opcode, r),
        }
        Ok(())
    }

    /// Classes, calls and references to storages: what stands in for objects.
    fn step_object(&mut self, opcode: u8, r: &mut Reader) -> Result<()> {
        match opcode {
            b'c' => {
                let (module, name) = (r.line()?, r.line()?);
                self.push(Node::Global(allowed(module, name)?));
            }
            0x93 => {
                let names = self.pop_many(2)?;
                let (Some(module), Some(name)) = (self.text(names[0]), self.text(names[1])) else {
                    bail!("a global without a name");
                };
                let global = allowed(module, name)?;
                self.push(Node::Global(global));
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.persistent(id)?;
                self.push(Node::Storage(storage.into()));
            }
            b'R' | 0x81 => {
                let operands = self.pop_many(2)?;
                let node = self.call(operands[0], operands[1])?;
                self.push(node);
            }
            // An OrderedDict's attributes (`_metadata`), a parameter's: not needed.
            b'b' => drop(self.pop()?),
            _ => bail!("this opcode does not occur in weights"),
        }
        Ok(())
    }

    /// ("storage", type, key, place, elements)
    fn persistent(&self, id: Ref) -> Result<Storage> {
        let Node::Tuple(parts) = self.node(id) else { bail!("a persistent id is no tuple") };
        let [kind, class, key, ..] = parts[..] else { bail!("a persistent id is too short") };
        ensure!(self.text(kind) == Some("storage"), "a persistent id is no storage");
        let (Node::Global(Global::Storage(dtype)), Some(key)) = (self.node(class), self.text(key)) else {
            bail!("a storage without type or key");
        };
        ensure!(key.len() <= LONGEST_NAME, "a storage's key has {} bytes", key.len());
        Ok(Storage { key: key.into(), dtype: *dtype })
    }

    /// What calling a global of the list gives.
    fn call(&self, function: Ref, arguments: Ref) -> Result<Node> {
        let Node::Global(global) = self.node(function) else { bail!("what is called is no global") };
        let Node::Tuple(arguments) = self.node(arguments) else { bail!("arguments are no tuple") };
        match (global, &arguments[..]) {
            (Global::OrderedDict, []) => Ok(Node::Dict(vec![])),
            (Global::Size, &[items]) => match self.node(items) {
                Node::Tuple(items) if items.len() <= LONGEST_SHAPE => Ok(Node::Tuple(items.clone())),
                _ => bail!("a torch.Size of what is no short tuple"),
            },
            (Global::RebuildParameter, &[tensor, ..]) => match self.node(tensor) {
                Node::Tensor(view) => Ok(Node::Tensor(view.clone())),
                _ => bail!("a parameter of what is no tensor"),
            },
            (Global::RebuildTensor, &[storage, offset, shape, strides, ..]) => {
                self.storage(storage)?;
                let Node::Int(offset) = self.node(offset) else { bail!("a tensor's offset is no number") };
                let (shape, strides) = (self.sizes(shape)?, self.sizes(strides)?);
                Ok(Node::Tensor(Box::new(View {
                    storage,
                    offset: usize::try_from(*offset)?,
                    shape,
                    strides,
                })))
            }
            _ => bail!("{global:?} is called with {} arguments", arguments.len()),
        }
    }

    fn sizes(&self, r: Ref) -> Result<Vec<usize>> {
        let Node::Tuple(items) = self.node(r) else { bail!("a tensor's shape or strides are no tuple") };
        ensure!(items.len() <= LONGEST_SHAPE, "a tensor of {} dimensions", items.len());
        let one = |&r: &Ref| match self.node(r) {
            Node::Int(n) => usize::try_from(*n).context("a negative size"),
            _ => bail!("a size is no number"),
        };
        items.iter().map(one).collect()
    }
}

fn pairs(items: &[Ref]) -> Result<Vec<(Ref, Ref)>> {
    ensure!(items.len().is_multiple_of(2), "a key without a value");
    Ok(items.chunks_exact(2).map(|p| (p[0], p[1])).collect())
}

/// A little-endian two's complement number; one that does not fit is no size, so its value is not kept.
fn long(bytes: &[u8]) -> Node {
    if bytes.len() > 8 {
        return Node::Other;
    }
    let sign = if bytes.last().is_some_and(|b| b & 0x80 != 0) { -1i64 } else { 0 };
    Node::Int(bytes.iter().rev().fold(sign, |n, &b| n << 8 | b as i64))
}
