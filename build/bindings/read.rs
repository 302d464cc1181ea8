//! From preprocessed text to declarations.
use super::{Element, Error, Kernel, Kind, Parameter, Place, Source};

/// A word, a number or one character of punctuation, and where its line begins: index of the file, line.
#[derive(Clone, Copy, Debug)]
struct Token<'a> {
    text: &'a str,
    file: usize,
    line: usize,
}

/// The tokens of preprocessed text, and the files that its line markers (`# 12 "file"`) name. Quotes are punctuation: no signature has one.
fn tokens(text: &str) -> (Vec<Token<'_>>, Vec<&str>) {
    let (mut found, mut files, mut file, mut line) = (vec![], vec!["?"], 0, 0);
    for text in text.lines() {
        line += 1;
        if let Some(marker) = text.strip_prefix("# ") {
            let mut parts = marker.splitn(3, '"');
            if let (Some(Ok(number)), Some(name)) =
                (parts.next().map(|n| n.trim().parse::<usize>()), parts.next())
            {
                file = files.iter().position(|f| *f == name).unwrap_or(files.len());
                if file == files.len() {
                    files.push(name);
                }
                line = number - number.min(1);
            }
            continue;
        }
        let word = |c: char| c.is_alphanumeric() || c == '_';
        let mut rest = text.trim_start();
        while let Some(first) = rest.chars().next() {
            let length =
                if word(first) { rest.find(|c| !word(c)).unwrap_or(rest.len()) } else { first.len_utf8() };
            let (token, behind) = rest.split_at(length);
            found.push(Token { text: token, file, line });
            rest = behind.trim_start();
        }
    }
    (found, files)
}

/// Tokens that are read one after another.
struct Reader<'a> {
    tokens: Vec<Token<'a>>,
    files: Vec<&'a str>,
    at: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<Token<'a>> {
        self.at += 1;
        self.tokens.get(self.at - 1).copied()
    }
    fn place(&self, token: Token) -> Place {
        Place { file: self.files[token.file].into(), line: token.line }
    }
    /// The word behind a marker.
    fn name(&mut self, marker: Token) -> Result<(Place, &'a str), Error> {
        match self.next() {
            Some(name) if is_name(name.text) => Ok((self.place(marker), name.text)),
            _ => self.place(marker).error(format!("there is no name behind `{}`", marker.text)),
        }
    }
    /// What stands between a pair of brackets that begins here.
    fn bracketed(
        &mut self,
        [open, close]: [&str; 2],
        place: &Place,
        what: &str,
    ) -> Result<Vec<Token<'a>>, Error> {
        let (first, mut depth) = (self.at + 1, 0usize);
        if self.tokens.get(self.at).is_none_or(|t| t.text != open) {
            return place.error(format!("{what} must begin with `{open}`"));
        }
        while let Some(token) = self.next() {
            if token.text == open {
                depth += 1;
            } else if token.text == close {
                depth -= 1;
            }
            if depth == 0 {
                return Ok(self.tokens[first..self.at - 1].to_vec());
            }
        }
        place.error(format!("{what} does not end"))
    }
}

fn is_name(word: &str) -> bool {
    word.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

fn joined(tokens: &[Token]) -> String {
    tokens.iter().map(|t| t.text).collect::<Vec<_>>().join(" ")
}

/// Names that a Rust parameter cannot have, and those that every launch function has.
const TAKEN: &[&str] = &[
    "as", "async", "await", "box", "crate", "dyn", "fn", "gen", "impl", "in", "let", "loop", "match", "mod",
    "move", "mut", "priv", "pub", "ref", "self", "super", "trait", "try", "type", "unsafe", "use", "where",
    "yield", "gpu", "grid",
];

/// One parameter; `structs` are the types that the file declares.
fn parameter(tokens: &[Token], structs: &[&str]) -> Result<Parameter, String> {
    let (mut constant, mut in_grid, mut optional, mut stars, mut words) = (false, false, false, 0, vec![]);
    for token in tokens {
        match token.text {
            "const" if stars == 0 => constant = true,
            "__restrict__" => {}
            "__grid_constant__" => in_grid = true,
            "sdrrl_optional" => optional = true,
            "*" => stars += 1,
            word if is_name(word) && word != "const" => words.push(word),
            other => return Err(format!("`{other}` is not understood in `{}`", joined(tokens))),
        }
    }
    let name = words.pop().unwrap_or_default();
    let ctype = words.join(" ");
    if ctype.is_empty() || TAKEN.contains(&name) {
        return Err(format!("`{}` is not a type and a name that Rust can have too", joined(tokens)));
    }
    let kind = match (stars, ctype.as_str()) {
        (0, "int") => Kind::Int,
        (0, "unsigned" | "unsigned int" | "uint32_t") => Kind::U32,
        (0, "unsigned long long" | "uint64_t" | "u64" | "size_t") => Kind::U64,
        (0, "float") => Kind::F32,
        (0, "TensorMap") if constant && in_grid => Kind::Map,
        (1, "float") => Kind::Pointer { element: Element::F32, written: !constant, optional },
        (1, "bf16" | "__nv_bfloat16") => {
            Kind::Pointer { element: Element::Bf16, written: !constant, optional }
        }
        (1, "void") => Kind::Pointer { element: Element::Any, written: !constant, optional },
        (1, "int" | "unsigned" | "uint32_t" | "uint8_t" | "double") => {
            Kind::Pointer { element: Element::Words, written: !constant, optional }
        }
        (1, other) if structs.contains(&other) => {
            Kind::Pointer { element: Element::Words, written: !constant, optional }
        }
        _ => return Err(format!("no Rust type is known for `{}`", joined(tokens))),
    };
    if (optional || in_grid) && !matches!((kind, in_grid), (Kind::Pointer { .. }, false) | (Kind::Map, true))
    {
        return Err(format!("`{}` can be neither OPTIONAL nor __grid_constant__", joined(tokens)));
    }
    Ok(Parameter { name: name.into(), kind })
}

/// The declarations of a kernel file, `unit` (`rmsnorm`, `sm90/gemm`), from its preprocessed text.
pub fn parse(unit: &str, preprocessed: &str) -> Result<Source, Error> {
    let (tokens, files) = tokens(preprocessed);
    let mut reader = Reader { tokens, files, at: 0 };
    let (mut source, mut structs) =
        (Source { unit: unit.into(), kernels: vec![], constants: vec![] }, vec![]);
    // The threads of each kernel, and whether it uses dynamic shared memory.
    let (mut bodies, mut exports, mut shared, mut tiles) = (vec![], vec![], vec![], vec![]);
    while let Some(token) = reader.next() {
        match token.text {
            "struct" => {
                structs.extend(reader.tokens.get(reader.at).filter(|t| is_name(t.text)).map(|t| t.text))
            }
            "sdrrl_kernel" => {
                let (place, name) = reader.name(token)?;
                let threads = reader.bracketed(["(", ")"], &place, "the threads")?;
                let parameters =
                    reader.bracketed(["(", ")"], &place, &format!("the parameters of {name}"))?;
                let body = reader.bracketed(["{", "}"], &place, &format!("the body of {name}"))?;
                let parameters = read_parameters(&parameters, &structs, &place, name)?;
                bodies.push((joined(&threads), body.iter().any(|t| t.text == "sdrrl_dynamic")));
                let name = name.into();
                source.kernels.push(Kernel { place, name, parameters, shared: false, tiled: false });
            }
            "sdrrl_export" => {
                let (place, name) = reader.name(token)?;
                let threads = reader.bracketed(["(", ")"], &place, "the threads")?;
                exports.push((place, name, joined(&threads)));
            }
            "sdrrl_shared" => shared.push(reader.name(token)?),
            "sdrrl_tile" => tiles.push(reader.name(token)?),
            "sdrrl_constant" => {
                let (place, name) = reader.name(token)?;
                source.constants.push((place, name.into()));
            }
            "sdrrl_dynamic" => return reader.place(token).error("DYNAMIC_SHARED outside of a KERNEL".into()),
            _ => {}
        }
    }
    for (kernel, (threads, dynamic)) in source.kernels.iter_mut().zip(bodies) {
        kernel.shared = dynamic;
        check_kernel(kernel, &threads, &exports, &shared)?;
        kernel.tiled = tiled(kernel, &tiles)?;
    }
    let known = |name: &str| source.kernels.iter().any(|k| k.name == name);
    let named =
        exports.iter().map(|(p, n, _)| (p, *n)).chain(shared.iter().chain(&tiles).map(|(p, n)| (p, *n)));
    for (place, name) in named {
        if !known(name) {
            return place.error(format!("there is no KERNEL {name} in this file"));
        }
    }
    Ok(source)
}

fn read_parameters(
    tokens: &[Token],
    structs: &[&str],
    place: &Place,
    kernel: &str,
) -> Result<Vec<Parameter>, Error> {
    let mut found: Vec<Parameter> = vec![];
    for (i, tokens) in tokens.split(|t| t.text == ",").enumerate().filter(|(_, t)| !t.is_empty()) {
        match parameter(tokens, structs) {
            Ok(p) if found.iter().any(|q| q.name == p.name) => {
                return place.error(format!("{kernel}: two parameters are called {}", p.name));
            }
            Ok(p) => found.push(p),
            Err(why) => return place.error(format!("{kernel}, parameter {}: {why}", i + 1)),
        }
    }
    Ok(found)
}

/// A kernel's other declarations: one EXPORT_KERNEL with its threads; SHARED_BYTES if and only if it has dynamic shared memory.
fn check_kernel(
    kernel: &Kernel,
    threads: &str,
    exports: &[(Place, &str, String)],
    shared: &[(Place, &str)],
) -> Result<(), Error> {
    let (place, name) = (&kernel.place, &kernel.name);
    match exports.iter().filter(|e| e.1 == name).collect::<Vec<_>>()[..] {
        [(_, _, own)] if own == threads => {}
        [(export, _, own)] => {
            return export
                .error(format!("{name} has {threads} threads in KERNEL and {own} in EXPORT_KERNEL"));
        }
        [] => return place.error(format!("there is no EXPORT_KERNEL({name}, {threads})")),
        [..] => return place.error(format!("there is more than one EXPORT_KERNEL({name}, ..)")),
    }
    match (kernel.shared, shared.iter().filter(|s| s.1 == name).count()) {
        (true, 1) | (false, 0) => Ok(()),
        (true, 0) => {
            place.error(format!("{name} uses DYNAMIC_SHARED: say how much with SHARED_BYTES({name}, bytes)"))
        }
        (false, _) => place.error(format!("{name} has SHARED_BYTES but no DYNAMIC_SHARED")),
        (true, _) => place.error(format!("there is more than one SHARED_BYTES({name}, ..)")),
    }
}

/// True if the kernel has a TILE; it has one at the most.
fn tiled(kernel: &Kernel, tiles: &[(Place, &str)]) -> Result<bool, Error> {
    match tiles.iter().filter(|t| t.1 == kernel.name).count() {
        count @ (0 | 1) => Ok(count == 1),
        _ => kernel.place.error(format!("there is more than one TILE({}, ..)", kernel.name)),
    }
}
