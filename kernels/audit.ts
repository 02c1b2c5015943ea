/**
 * Whether kernels stay inside their arrays. A text is rewritten so that every index of an array, a vector, an image or a
 * tile that matrix units read is compared with how many elements there are, and a place that does not hold is told by one
 * more buffer. Kernels run without a device's own checks for that reason (`runtime.bounds_checks`): tests show, by running
 * each in this way at odd sizes and on hostile data, that they need none. Test-only.
 *
 * It reads as much of WGSL as kernels are written in, and refuses a text of which it cannot tell an extent, so that
 * nothing goes unseen. Indices that are numbers are left to the compiler where the extent is part of the type: it refuses
 * those that do not fit.
 *
 * How a fault is told: `auditIndex` notes place and index in variables of the invocation, without a branch, and gives the
 * index back unchanged; the entry point, which is wrapped, writes them out when it is done. So a check costs a comparison.
 */
import { type DeviceTraits, elementBytes, type Kernel, type Operand, type Pass } from "./kernel.ts";

type Type =
  | { readonly kind: "array"; readonly of: Type; readonly count?: number }
  | { readonly kind: "vector"; readonly of: Type; readonly count: number }
  | { readonly kind: "struct"; readonly fields: ReadonlyMap<string, Type> }
  | { readonly kind: "pointer"; readonly to: Type }
  /** A matrix that a subgroup holds together: 16 x 16. */
  | { readonly kind: "units"; readonly bytes: number }
  | { readonly kind: "scalar"; readonly bytes: number }
  | { readonly kind: "unknown" };

const unknown: Type = { kind: "unknown" }, word: Type = { kind: "scalar", bytes: 4 };

/** One place in a text where an array is indexed. */
export interface Site {
  /** As written: `tileA[p + 1u][…]`. */
  readonly text: string;
  readonly extent: number;
}

interface Token {
  readonly text: string;
  readonly at: number;
  readonly name: boolean;
}

/** What a text's buffers hold, by binding: bytes. */
export interface Extents {
  readonly buffers: readonly number[];
  /** Texels of each image. */
  readonly images: readonly number[];
}

/** Words that the log of a run has: faulty invocations, then the first one's site (from 1), index, and nothing. */
export const logWords = 4;

/**
 * Rewrites a text.
 *
 * @returns the text, whose last buffer (after those of `extents`, before the images) is the log, and its sites
 * @throws {TypeError} on an index whose extent cannot be told
 */
export function auditText(code: string, extents: Extents): { code: string; sites: readonly Site[] } {
  const text = code.replaceAll(/\/\/[^\n]*/g, "").replaceAll(/\/\*[^]*?\*\//g, "");
  const tokens: Token[] = [...text.matchAll(/([A-Za-z_]\w*)|\d[\w.]*(?:[eE][+-]?\d+\w*)?|\S/g)].map((match) => ({
    text: match[0],
    at: match.index,
    name: match[1] !== undefined,
  }));
  const is = (i: number, ...texts: string[]) => tokens[i] !== undefined && texts.includes(tokens[i].text);
  const pairOf = matchBrackets(tokens);
  const slice = (from: number, to: number) =>
    text.slice(tokens[from].at, tokens[to - 1].at + tokens[to - 1].text.length);
  const cannot = (what: string, i: number) =>
    new TypeError(`Cannot audit: ${what} at "${text.slice(Math.max(0, tokens[i].at - 60), tokens[i].at + 60)}"`);

  const aliases = new Map<string, Type>(), structs = new Map<string, Type>();
  const constants = new Map<string, number>(), functions = new Map<string, Type>();
  const scopes: Scope[] = [newScope()];
  const find = (name: string) => scopes.findLast(({ types }) => types.has(name))?.types.get(name);

  /** The end of a template list that begins at `<`: past its `>`. */
  function templateEnd(open: number): number {
    let depth = 0;
    for (let i = open; i < tokens.length; i++) {
      if (is(i, "<")) depth++;
      else if (is(i, ">") && --depth === 0) return i + 1;
      else if (is(i, "(")) i = pairOf[i]!;
    }
    throw cannot("a template list without end", open);
  }
  /** What stands between commas of a list, as ranges of tokens. */
  function listed(from: number, to: number): (readonly [from: number, to: number])[] {
    const parts: (readonly [number, number])[] = [];
    let begin = from;
    for (let i = from, depth = 0; i < to; i++) {
      if (is(i, "(", "[", "{")) i = pairOf[i]!;
      else if (is(i, "<") && isTemplate(i)) depth++;
      else if (is(i, ">") && depth > 0) depth--;
      else if (is(i, ",") && depth === 0) {
        parts.push([begin, i]);
        begin = i + 1;
      }
    }
    if (begin < to) parts.push([begin, to]);
    return parts;
  }
  const isTemplate = (i: number) => is(i - 1, ...templates) && is(i, "<");

  function number(from: number, to: number): number {
    const value = constants.get(tokens[from].text) ?? parseInt(tokens[from].text);
    if (to !== from + 1 || !Number.isInteger(value)) throw cannot(`a size "${slice(from, to)}"`, from);
    return value;
  }

  function typeAt(i: number): { type: Type; end: number } {
    const { text: name } = tokens[i];
    const end = is(i + 1, "<") && isTemplate(i + 1) ? templateEnd(i + 1) : i + 1;
    const inner = end > i + 1 ? listed(i + 2, end - 1) : [];
    const first = () => typeAt(inner[0]![0]).type;
    const short = name.match(/^vec([234])([fhiu])?$/);
    const known = aliases.get(name) ?? structs.get(name);
    if (known !== undefined) return { type: known, end };
    if (short !== null) {
      const of: Type = short[2] === undefined ? first() : { kind: "scalar", bytes: short[2] === "h" ? 2 : 4 };
      return { type: { kind: "vector", of, count: Number(short[1]) }, end };
    }
    switch (name) {
      case "array": {
        const count = inner[1] && number(...inner[1]);
        return { type: { kind: "array", of: first(), ...(count !== undefined && { count }) }, end };
      }
      case "atomic":
        return { type: first(), end };
      case "ptr":
        return { type: { kind: "pointer", to: typeAt(inner[1]![0]).type }, end };
      case "subgroup_matrix_left":
      case "subgroup_matrix_right":
      case "subgroup_matrix_result":
        return { type: { kind: "units", bytes: tokens[inner[0]![0]].text === "f16" ? 2 : 4 }, end };
      case "f16":
        return { type: { kind: "scalar", bytes: 2 }, end };
      case "f32":
      case "u32":
      case "i32":
      case "bool":
        return { type: word, end };
      default:
        return { type: unknown, end };
    }
  }

  /** The type of an operand (unary operators, a name or a call or brackets, then indices and members) and where it ends. */
  function operandAt(i: number): { type: Type; end: number } {
    if (is(i, "-", "~", "!")) return operandAt(i + 1);
    if (is(i, "*")) {
      const { type, end } = operandAt(i + 1);
      return { type: type.kind === "pointer" ? type.to : unknown, end };
    }
    if (is(i, "&")) {
      const { type, end } = operandAt(i + 1);
      return { type: { kind: "pointer", to: type }, end };
    }
    let type: Type, end: number;
    if (is(i, "(")) {
      end = pairOf[i]! + 1;
      type = typeOf(i + 1, end - 1);
    } else if (tokens[i].name) {
      const made = typeAt(i);
      end = made.end;
      if (is(end, "(")) {
        type = callType(i, made.type, end);
        end = pairOf[end]! + 1;
      } else type = find(tokens[i].text) ?? unknown;
    } else {
      end = i + 1;
      type = word;
    }
    for (;;) {
      if (is(end, "[")) {
        type = elementOf(type) ?? unknown;
        end = pairOf[end]! + 1;
      } else if (is(end, ".") && tokens[end + 1].name) {
        type = memberOf(type, tokens[end + 1].text);
        end += 2;
      } else return { type, end };
    }
  }

  function callType(name: number, made: Type, open: number): Type {
    const called = tokens[name].text;
    if (made.kind !== "unknown") return made; // a constructor
    if (called === "bitcast" || called.startsWith("subgroupMatrixLoad")) return typeAt(name + 2).type;
    const ownType = functions.get(called);
    if (ownType !== undefined) return ownType;
    if (called === "unpack2x16float") return { kind: "vector", of: word, count: 2 };
    if (called.startsWith("pack") || called === "dot" || called === "arrayLength") return word;
    if (called.startsWith("atomic") || called === "workgroupUniformLoad") {
      const [first] = listed(open + 1, pairOf[open]!), { type } = operandAt(first![0]);
      return type.kind === "pointer" ? type.to : unknown;
    }
    // Other functions of the language work element by element.
    const types = listed(open + 1, pairOf[open]!).map((part) => typeOf(...part));
    return types.find(({ kind }) => kind === "vector") ?? types[0] ?? unknown;
  }

  /** The type of an expression: of several operands, the vector among them. */
  function typeOf(from: number, to: number): Type {
    let found: Type = unknown;
    for (let i = from; i < to;) {
      const { type, end } = operandAt(i);
      if (found.kind === "unknown" || (found.kind === "scalar" && type.kind === "vector")) found = type;
      for (i = end; i < to && !tokens[i].name && !/^\d/.test(tokens[i].text) && !is(i, "("); i++);
    }
    return found;
  }

  /** The declared type of `name: type` or, after `=`, that of the expression. */
  function declare(name: number, fixed: boolean): void {
    let type = unknown, i = name + 1;
    if (is(i, ":")) ({ type, end: i } = typeAt(i + 1));
    if (type === unknown && is(i, "=")) {
      let end = i + 1;
      while (!is(end, ";")) end = is(end, "(", "[", "{") ? pairOf[end]! + 1 : end + 1;
      type = typeOf(i + 1, end);
    }
    scopes.at(-1)!.types.set(tokens[name].text, type);
    if (fixed) scopes.at(-1)!.fixed.add(tokens[name].text);
  }
  /** The name after `var`, `var<…>`, `let` or `const`. */
  const declared = (i: number) => is(i + 1, "<") ? templateEndOfSpace(i + 1) : i + 1;
  function templateEndOfSpace(open: number): number {
    while (!is(open, ">")) open++;
    return open + 1;
  }

  const bindings = new Map<string, number>();
  // Declarations of the module, in any order: types before what has them.
  const topLevel = [...eachAtTop(tokens, pairOf)];
  for (const i of topLevel) if (is(i, "const")) noteConstant(i);
  for (const i of topLevel) {
    if (is(i, "alias")) aliases.set(tokens[i + 1].text, typeAt(i + 3).type);
    if (is(i, "struct")) structs.set(tokens[i + 1].text, structAt(i + 2));
  }
  for (const i of topLevel) {
    if (is(i, "fn")) {
      const close = pairOf[i + 2]!;
      functions.set(tokens[i + 1].text, is(close + 1, "-") ? typeAt(close + 3).type : unknown);
    }
  }
  for (const i of topLevel) {
    if (!is(i, "var") && !is(i, "const")) continue;
    const name = declared(i);
    declare(name, is(i, "const"));
    const binding = bindingBefore(i);
    if (binding !== undefined) bindings.set(tokens[name].text, binding);
  }
  function noteConstant(i: number): void {
    const equals = is(i + 2, "=") ? i + 2 : i + 4, value = parseInt(tokens[equals + 1]?.text ?? "");
    if (Number.isInteger(value) && is(equals + 2, ";")) constants.set(tokens[i + 1].text, value);
  }
  function structAt(open: number): Type {
    const fields = new Map<string, Type>();
    for (const [from] of listed(open + 1, pairOf[open]!)) {
      let name = from;
      while (!is(name + 1, ":")) name++;
      fields.set(tokens[name].text, typeAt(name + 2).type);
    }
    return { kind: "struct", fields };
  }
  /** Of `@group(0) @binding(3) var …`, 3. */
  function bindingBefore(i: number): number | undefined {
    return is(i - 1, ")") && is(i - 4, "binding") ? Number(tokens[i - 2].text) : undefined;
  }

  const sites: Site[] = [];
  const insertions: { readonly at: number; readonly text: string }[] = [];
  const insert = (at: number, text: string) => insertions.push({ at, text });
  const siteOf = (text: string, extent: number) => sites.push({ text: text.replaceAll(/\s+/g, " "), extent });

  /** Elements of what a chain of tokens names; a buffer's are counted by what is bound. */
  function extentOf(type: Type, from: number, to: number): number {
    if (type.kind === "vector") return type.count;
    if (type.kind !== "array") throw cannot(`an index of "${slice(from, to)}", whose type is not told`, to);
    if (type.count !== undefined) return type.count;
    const binding = bindings.get(tokens[from].text);
    const bytes = binding === undefined || to !== from + 1 ? undefined : extents.buffers[binding];
    if (bytes === undefined) throw cannot(`an array "${slice(from, to)}" of no known length`, to);
    return Math.ceil(bytes / bytesOf(type.of));
  }

  /** Where the operand that ends before a bracket begins. */
  function chainStart(open: number): number {
    for (let i = open - 1;;) {
      if (is(i, "]")) i = pairOf[i]! - 1;
      else if (is(i, ")")) {
        const begin = pairOf[i]!;
        if (is(begin - 1, ">")) {
          let at = begin - 1, depth = 0;
          do depth += is(at, ">") ? 1 : is(at, "<") ? -1 : 0; while (depth > 0 && at-- > 0);
          return at - 1;
        }
        return tokens[begin - 1].name && !is(begin - 1, ...statements) ? begin - 1 : begin;
      } else if (is(i - 1, ".")) i -= 2;
      else return i;
    }
  }

  const entries: string[] = [];
  let parameters = newScope();
  const parentheses: number[] = [];
  for (let i = 0; i < tokens.length; i++) {
    if (is(i, "{")) {
      scopes.push(parameters);
      parameters = newScope();
    } else if (is(i, "(")) parentheses.push(i);
    else if (is(i, ")")) parentheses.pop();
    else if (is(i, "}")) scopes.pop();
    else if (is(i, "fn")) {
      for (const [from, to] of listed(i + 3, pairOf[i + 2]!)) {
        let name = from;
        while (name < to && !is(name + 1, ":")) name++;
        parameters.types.set(tokens[name].text, typeAt(name + 2).type);
        parameters.fixed.add(tokens[name].text);
      }
      const image = tokens[i + 1].text.match(/^(\w+)Texel$/)?.[1],
        binding = image === undefined ? undefined : bindings.get(`${image}Image`);
      if (binding !== undefined) {
        const extent = extents.images[binding - extents.buffers.length]!;
        siteOf(`${image} as an image`, extent);
        let body = pairOf[i + 2]! + 1;
        while (!is(body, "{")) body++;
        insert(tokens[body].at + 1, ` _ = auditIndex(i, ${extent}u, ${sites.length}u);`);
      }
    } else if ((is(i, "var") || is(i, "let") || is(i, "const")) && scopes.length > 1) {
      declare(declared(i), !is(i, "var"));
    } else if (is(i, "textureLoad") && !/Texel$/.test(tokens[enclosingFunction(i)].text)) {
      throw cannot("a texture that is not read by its function", i);
    } else if (is(i, "textureStore")) throw cannot("a texture that is written", i);
    else if (is(i, "subgroupMatrixLoad", "subgroupMatrixStore")) auditMatrix(i);
    else if (is(i, "[")) auditBrackets(i);
  }
  function enclosingFunction(i: number): number {
    while (!is(i, "fn")) i--;
    return i + 1;
  }
  function auditBrackets(open: number): void {
    const close = pairOf[open]!, from = chainStart(open);
    const { type } = typeBefore(from, open);
    const literal = close === open + 2
      ? constants.get(tokens[open + 1].text) ?? parseNumber(tokens[open + 1].text)
      : undefined;
    if (literal !== undefined && type.kind !== "array") return;
    const extent = extentOf(type, from, open);
    if (literal !== undefined) {
      if (literal >= extent) {
        throw new RangeError(`${slice(from, close + 1)} is past the end: it has ${extent} elements`);
      }
      return;
    }
    if (checkedBefore(open, extent)) return;
    siteOf(slice(from, close + 1), extent);
    insert(tokens[open].at + 1, "auditIndex(u32(");
    insert(tokens[close].at, `), ${extent}u, ${sites.length}u)`);
  }
  /**
   * Whether the same index was compared before, on the way here in every case: it has names alone whose values stay. Loops
   * that are written out have the same ones over and over, and comparing costs a compiler of rasterisers much.
   */
  function checkedBefore(open: number, extent: number): boolean {
    const names: string[] = [];
    for (let i = open + 1; i < pairOf[open]!; i++) {
      const { text, name } = tokens[i];
      if (name && !is(i + 1, "(") && !is(i - 1, ".")) {
        const scope = scopes.findLast(({ types }) => types.has(text));
        if (!scope?.fixed.has(text)) return false;
        names.push(`${text}@${scope.id}`);
      } else names.push(text);
    }
    const key = `${names.join(" ")} of ${extent}`;
    if (scopes.some(({ checked }) => checked.has(key))) return true;
    // What may be passed over is no proof for what follows.
    if (parentheses.some((i) => is(i - 1, "for"))) return false;
    for (let i = open; !is(i, ";", "{", "}"); i--) if (is(i, "&", "|") && is(i - 1, "&", "|")) return false;
    scopes.at(-1)!.checked.add(key);
    return false;
  }
  /** The type of an operand up to, and without, an index. */
  function typeBefore(from: number, open: number): { type: Type } {
    let { type, end } = is(from, "(") || tokens[from].name ? headAt(from) : { type: unknown, end: from };
    while (end < open) {
      if (is(end, "[")) {
        type = elementOf(type) ?? unknown;
        end = pairOf[end]! + 1;
      } else {
        type = memberOf(type, tokens[end + 1].text);
        end += 2;
      }
    }
    return { type };
  }
  /** An operand without its indices and members. */
  function headAt(i: number): { type: Type; end: number } {
    if (is(i, "(")) return { type: typeOf(i + 1, pairOf[i]!), end: pairOf[i]! + 1 };
    const made = typeAt(i);
    if (is(made.end, "(")) return { type: callType(i, made.type, made.end), end: pairOf[made.end]! + 1 };
    return { type: find(tokens[i].text) ?? unknown, end: i + 1 };
  }
  /** 16 lines, each of 16 numbers, `stride` elements of the array apart. */
  function auditMatrix(i: number): void {
    const open = is(i + 1, "<") ? templateEnd(i + 1) : i + 1, parts = listed(open + 1, pairOf[open]!);
    const [place, offset, third] = parts, load = is(i, "subgroupMatrixLoad");
    const stride = load ? third : parts[3];
    const pointer = operandAt(place![0]).type, array = pointer.kind === "pointer" ? pointer.to : unknown;
    const units = load ? typeAt(i + 2).type : typeOf(...third!);
    if (array.kind !== "array" || units.kind !== "units") throw cannot("a matrix of unknown type", i);
    const extent = array.count ?? extentOf(array, place![0] + 1, place![1]);
    const line = Math.ceil(16 * units.bytes / bytesOf(array.of));
    siteOf(slice(i, pairOf[open]! + 1), extent);
    insert(tokens[offset![0]].at, `auditMatrix(`);
    const end = tokens[offset![1] - 1];
    insert(end.at + end.text.length, `, 15u * (${slice(...stride!)}) + ${line}u, ${extent}u, ${sites.length}u)`);
  }

  const log = extents.buffers.length;
  let audited = "", at = 0;
  insertions.sort((a, b) => a.at - b.at);
  for (const { at: place, text: more } of insertions) {
    audited += text.slice(at, place) + more;
    at = place;
  }
  audited += text.slice(at);
  audited = audited.replaceAll(
    /@binding\((\d+)\)/g,
    (whole, binding) => Number(binding) < log ? whole : `@binding(${Number(binding) + 1})`,
  );
  audited = audited.replaceAll(
    /((?:@compute|@workgroup_size\([^)]*\))\s*)+fn (\w+)\(((?:[^()]|\([^()]*\))*)\)/g,
    (head: string, _: string, name: string, parameters: string) => {
      const plain = parameters.replaceAll(/@\w+\([^)]*\)\s*/g, "");
      const names = [...plain.matchAll(/(\w+)\s*:/g)].map(([, parameter]) => parameter);
      entries.push(name);
      return `${head} { audited_${name}(${names.join(", ")}); auditReport(); }\nfn audited_${name}(${plain})`;
    },
  );
  if (entries.length === 0) throw new TypeError("Cannot audit: the text has no entry point");
  return { code: audited + auditFunctions(log), sites };
}

const auditFunctions = (binding: number) => `
@group(0) @binding(${binding}) var<storage, read_write> auditLog: array<atomic<u32>, ${logWords}>;
var<private> auditSite = 0u;
var<private> auditAt = 0u;
fn auditIndex(i: u32, extent: u32, site: u32) -> u32 {
  let inside = i < extent;
  auditAt = select(i, auditAt, inside);
  auditSite = select(site, auditSite, inside);
  return i;
}
fn auditMatrix(offset: u32, span: u32, extent: u32, site: u32) -> u32 {
  let inside = offset < extent && span <= extent - offset;
  auditAt = select(offset, auditAt, inside);
  auditSite = select(site, auditSite, inside);
  return offset;
}
fn auditReport() {
  if (auditSite == 0u) { return; }
  if (atomicAdd(&auditLog[0], 1u) != 0u) { return; }
  atomicStore(&auditLog[1], auditSite);
  atomicStore(&auditLog[2], auditAt);
}
`;

/** A kernel whose last operand, `audit`, tells of indices outside; the rest is as it was. */
export function audited(kernel: Kernel): Kernel & { fault(log: ArrayLike<number>): string | undefined } {
  const log: Operand = { name: "audit", type: "u32", length: logWords, access: "update" };
  const sitesOf: (readonly Site[])[] = [];
  return {
    name: kernel.name,
    ...(kernel.shape !== undefined && { shape: kernel.shape }),
    operands: [...kernel.operands, log],
    cost: kernel.cost,
    reference: (views) => kernel.reference(views.slice(0, -1)),
    passes(traits: DeviceTraits): readonly Pass[] {
      return kernel.passes(traits).map((pass): Pass => {
        const { operands } = kernel, bytes = (i: number) => operands[i].length * elementBytes[operands[i].type];
        // Numbers of sites go on from pass to pass.
        const before = sitesOf.flat().length;
        const { code, sites } = auditText(pass.code, {
          buffers: pass.operands.map(bytes),
          images: (pass.images ?? []).map(({ operand, words }) => Math.ceil(bytes(operand) / (4 * words))),
        });
        sitesOf.push(sites);
        return {
          ...pass,
          code: code.replace("auditLog[1], auditSite", `auditLog[1], auditSite + ${before}u`),
          operands: [...pass.operands, operands.length],
        };
      });
    },
    fault(words) {
      if (words[0] === 0) return undefined;
      const site = sitesOf.flat()[words[1] - 1];
      return `${kernel.name}: ${site?.text} at ${words[2]}, of ${site?.extent} elements; ${
        words[0]
      } invocations left theirs`;
    },
  };
}

interface Scope {
  readonly id: number;
  readonly types: Map<string, Type>;
  /** Names whose values stay. */
  readonly fixed: Set<string>;
  /** Indices that were compared in it. */
  readonly checked: Set<string>;
}
let scopeCount = 0;
const newScope = (): Scope => ({ id: scopeCount++, types: new Map(), fixed: new Set(), checked: new Set() });

/** Names before a `<` that begins a list of types. */
const templates = (
  "array atomic ptr vec2 vec3 vec4 bitcast var subgroup_matrix_left subgroup_matrix_right subgroup_matrix_result " +
  "subgroupMatrixLoad subgroupMatrixStore texture_storage_2d"
).split(" ");
const statements = ["if", "for", "while", "return", "switch", "else"];

function parseNumber(text: string): number | undefined {
  return /^\d+[ui]?$/.test(text) ? parseInt(text) : undefined;
}

function matchBrackets(tokens: readonly Token[]): (number | undefined)[] {
  const pairs: (number | undefined)[] = [], open: number[] = [];
  const closing: Readonly<Record<string, string>> = { ")": "(", "]": "[", "}": "{" };
  tokens.forEach(({ text }, i) => {
    if ("([{".includes(text)) open.push(i);
    else if (text in closing) {
      const begin = open.pop();
      if (begin === undefined || tokens[begin].text !== closing[text]) {
        throw new TypeError(`Cannot audit: a bracket ${text} closes none`);
      }
      pairs[begin] = i;
      pairs[i] = begin;
    }
  });
  if (open.length > 0) throw new TypeError("Cannot audit: a bracket is not closed");
  return pairs;
}

/** Tokens outside of all brackets. */
function* eachAtTop(tokens: readonly Token[], pairOf: readonly (number | undefined)[]): Generator<number> {
  for (let i = 0; i < tokens.length; i++) {
    yield i;
    if ("([{".includes(tokens[i].text)) i = pairOf[i]!;
  }
}

function elementOf(type: Type): Type | undefined {
  return type.kind === "array" || type.kind === "vector" ? type.of : undefined;
}

function memberOf(type: Type, name: string): Type {
  if (type.kind === "struct") return type.fields.get(name) ?? unknown;
  if (type.kind !== "vector") return unknown;
  return name.length === 1 ? type.of : { kind: "vector", of: type.of, count: name.length };
}

/** Bytes from one element of an array to the next. */
function bytesOf(type: Type): number {
  switch (type.kind) {
    case "scalar":
      return type.bytes;
    case "vector":
      return (type.count === 3 ? 4 : type.count) * bytesOf(type.of);
    case "array":
      if (type.count !== undefined) return type.count * bytesOf(type.of);
      break;
    case "struct": {
      // As long as the fields are of one size, which holds for those of kernels.
      const sizes = [...type.fields.values()].map(bytesOf);
      if (new Set(sizes).size === 1) return sizes.reduce((sum, size) => sum + size, 0);
    }
  }
  throw new TypeError(`Cannot audit: no size of a ${type.kind} is known`);
}
