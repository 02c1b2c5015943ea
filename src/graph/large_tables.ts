/**
 * Tables of the vocabulary, and logits, that are larger than one binding of the device: the embedding, the head and the
 * loss are traced anew by rows of the table, each few enough to bind. A parameter stays one tensor in one buffer; what the
 * nodes read are rows of it in their place, and gradients are added to the same rows. Logits become one tensor for each
 * part of the vocabulary, and the loss joins what each part tells of every token, as ranks do that divide the vocabulary.
 */
import { crossEntropyMerge, crossEntropyStatistics, statisticsPerRow } from "../../kernels/cross_entropy/mod.ts";
import { elementBytes } from "../../kernels/kernel.ts";
import { bind, storedAs } from "./bind.ts";
import { copyLeaf, elementCount, f32, Graph, type Node, type Operator, type Tensor } from "./graph.ts";
import {
  addInto,
  type CrossEntropyAttributes,
  crossEntropyGradient,
  embedding,
  type EmbeddingAttributes,
  linear,
  type LinearAttributes,
  rowNormalize,
  type VocabularyCrossEntropyAttributes,
} from "./operators.ts";
import type { Outputs } from "./plan.ts";

interface Pass {
  readonly graph: Graph;
  readonly outputs: Outputs;
}

/** Rows of a tensor begin at multiples of this many bytes where a kernel binds them. */
const ALIGNMENT = 256;

/** A step has nodes for each part, and planning takes time for each. */
const mostParts = 1024;

/** Name of part `index` of an output that is made in parts of its columns. */
const partName = (output: string, index: number): string => `${output} ${index}`;

/** The parts of an output that is made in parts, by their order; empty for one that is made whole. */
export const partsOf = (names: Iterable<string>, output: string): string[] => {
  const known = new Set(names), parts: string[] = [];
  while (known.has(partName(output, parts.length))) parts.push(partName(output, parts.length));
  return parts;
};

/** What reads logits. */
const losses = new Set(["crossEntropy", "crossEntropyStatistics", "vocabularyCrossEntropy"]);

/** Rows that each part of a parameter has, by name: of those that some node would bind beyond `largest` bytes. */
function rowsOfParts({ nodes }: Graph, largest: number): Map<string, number> {
  const parts = new Map<string, number>(), normalized = new Map<Tensor, Tensor>();
  const take = (table: Tensor, most: number) => {
    const [rows, columns] = table.shape as [number, number];
    if (most >= rows) return;
    // The rows before a part fill whole units of alignment, in the parameter and in its half-width copy.
    let unit = 1;
    while (unit * columns * Math.min(4, elementBytes[table.type]) % ALIGNMENT !== 0) unit *= 2;
    const even = Math.ceil(rows / Math.ceil(rows / most)), aligned = Math.ceil(even / unit) * unit;
    const each = aligned <= most ? aligned : Math.floor(most / unit) * unit;
    if (each === 0) {
      throw new RangeError(
        `Cannot divide parameter ${table.name} [${table.shape}]: one binding of this device holds ${largest} bytes, less ` +
          `than the ${unit} rows of it that begin at a multiple of ${ALIGNMENT} bytes`,
      );
    }
    if (rows / each > mostParts) {
      throw new RangeError(
        `Cannot divide parameter ${table.name} [${table.shape}]: one binding of this device holds ${largest} bytes, which ` +
          `makes ${
            Math.ceil(rows / each)
          } parts of it, and ${mostParts} would be the most; a smaller model.vocab_size, ` +
          `model.hidden_size or micro-batch would fit`,
      );
    }
    parts.set(table.name, Math.min(each, parts.get(table.name) ?? each));
  };
  const rowsWithin = (columns: number, bytes: number) => Math.floor(largest / (columns * bytes));
  for (const { operator: { name }, inputs, outputs } of nodes) {
    const [first, second] = inputs;
    if (name === "rowNormalize" && first!.kind === "parameter") normalized.set(outputs[0]!, first!);
    if (name === "embedding" && second!.kind === "parameter") take(second!, rowsWithin(second!.shape[1]!, 4));
    if (name !== "linear") continue;
    const table = normalized.get(second!) ?? second!, [logits] = outputs;
    const readers = nodes.filter((node) => node.inputs.includes(logits!));
    if (table.kind !== "parameter" || inputs.length > 2) continue;
    if (!readers.every(({ operator: { name } }) => losses.has(name)) || readers.length === 0) continue;
    const [tokens] = logits!.shape as [number];
    take(table, Math.min(rowsWithin(table.shape[1]!, 4), rowsWithin(tokens, elementBytes[logits!.type])));
  }
  return parts;
}

/**
 * @param pass a pass of one rank
 * @param largest bytes of one binding
 * @returns the pass itself where all that it reads of tables can be bound; outputs that are made in parts are named by
 * {@linkcode partName}
 */
export function cutLargeTables<P extends Pass>(pass: P, largest: number): P | Pass {
  const rowsEach = rowsOfParts(pass.graph, largest);
  if (rowsEach.size === 0) return pass;
  const source = pass.graph, graph = new Graph(source.types);
  for (const { tensor } of source.parameters.values()) copyLeaf(graph, tensor); // in the order of the whole model
  const values = new Map<Tensor, Tensor>(), divided = new Map<Tensor, readonly Tensor[]>();
  const here = (tensor: Tensor): Tensor => {
    const known = values.get(tensor) ?? (tensor.kind === "value" ? undefined : copyLeaf(graph, tensor));
    if (known) return known;
    throw new RangeError(
      `Cannot divide a tensor [${tensor.shape}] that is larger than one binding (${largest} bytes): it has other ` +
        "readers than the loss",
    );
  };
  /** The parts of a table that is divided. */
  const partsOfTable = (table: Tensor): readonly Tensor[] | undefined => {
    const each = rowsEach.get(table.name);
    if (divided.has(table)) return divided.get(table);
    if (table.kind !== "parameter" || each === undefined) return undefined;
    const whole = here(table), rows = table.shape[0]!;
    const parts = Array.from(
      { length: Math.ceil(rows / each) },
      (_, index) => graph.rows(whole, index * each, Math.min(each, rows - index * each)),
    );
    divided.set(table, parts);
    return parts;
  };

  /** Traces a node by parts; its outputs, or nothing where those are parts themselves or the node is to stay whole. */
  const inParts = ({ operator: { name }, attributes, inputs, outputs }: Node): readonly Tensor[] | undefined => {
    const [first, second, third] = inputs;
    const logits = divided.get(first!);
    switch (name) {
      case "embedding": {
        const table = partsOfTable(second!), { firstRow = 0, ...rest } = attributes as EmbeddingAttributes;
        if (!table) return undefined;
        const found = table.map((rows) =>
          embedding(here(first!), rows, { ...rest, firstRow: firstRow + rows.firstRow! })
        );
        return [found.reduce(addInto)];
      }
      case "rowNormalize": {
        const table = partsOfTable(first!);
        if (!table) return undefined;
        divided.set(outputs[0]!, table.map(rowNormalize));
        return [];
      }
      case "linear": {
        const table = partsOfTable(second!), { weightGradientScale, type } = attributes as LinearAttributes;
        if (!table) return undefined;
        const options = { weightGradientScale, ...(type && { type }) };
        divided.set(outputs[0]!, table.map((rows) => linear(here(first!), rows, options)));
        return [];
      }
      case "crossEntropyStatistics":
        return logits && [statisticsOf(logits, here(second!), attributes.firstColumn)];
      case "crossEntropy": {
        if (!logits) return undefined;
        const { labelSmoothing } = attributes as CrossEntropyAttributes, vocabulary = first!.shape[1]!;
        const statistics = statisticsOf(logits, here(second!), 0);
        const whole = { labelSmoothing, vocabulary, firstColumn: 0, parts: 1 };
        return graph.apply(dividedCrossEntropy, [here(second!), here(third!), statistics, ...logits], whole);
      }
      case "vocabularyCrossEntropy":
        return logits &&
          graph.apply(dividedCrossEntropy, [...inputs.slice(1).map(here), ...logits], attributes);
      default:
        return undefined;
    }
  };

  for (const node of source.nodes) {
    const { operator, attributes, layer, transient = false } = node;
    graph.inLayer(layer, () => {
      const outputs = inParts(node) ?? graph.apply(operator, node.inputs.map(here), attributes, { transient });
      outputs.forEach((output, index) => values.set(node.outputs[index]!, output));
    });
  }
  const outputs = Object.entries(pass.outputs).flatMap(([name, tensor]) =>
    divided.get(tensor)?.map((part, index) => [partName(name, index), part] as const) ?? [[name, here(tensor)] as const]
  );
  return { graph, outputs: Object.fromEntries(outputs) };
}

/** Of each row of logits that are in parts: see `crossEntropyStatistics`. */
const statisticsOf = (logits: readonly Tensor[], labels: Tensor, firstColumn: number): Tensor =>
  logits.reduce<{ joined?: Tensor; next: number }>(({ joined, next }, part) => {
    const inputs = joined ? [part, labels, joined] : [part, labels];
    const [statistics] = part.graph.apply(joinedStatistics, inputs, { firstColumn: next });
    return { joined: statistics!, next: next + part.shape[1]! };
  }, { next: firstColumn }).joined!;

/** Statistics of logits, joined with those of the columns before them where there are any. */
const joinedStatistics: Operator<{ firstColumn: number }> = {
  name: "crossEntropyStatistics",
  infer: ([logits]) => [f32(logits!.shape[0]!, statisticsPerRow)],
  lower({ inputs: [logits, labels, before], outputs: [joined], attributes: { firstColumn } }) {
    const [rows, columns] = logits!.shape as [number, number];
    const sizes = { rows, columns, firstColumn, type: storedAs(logits!), joins: before !== undefined };
    return bind(crossEntropyStatistics(sizes), [logits!, labels!, joined!]);
  },
  inPlace: 2,
};

/** The loss from statistics of the whole vocabulary, inputs labels, weight, statistics, and logits in parts. */
const dividedCrossEntropy: Operator<VocabularyCrossEntropyAttributes> = {
  name: "dividedCrossEntropy",
  root: true,
  infer([labels]) {
    const rows = elementCount(labels!.shape);
    return [f32(rows), f32(rows), f32(rows), { shape: [rows], type: "u32" }];
  },
  gradient({ inputs, outputs: [, , logSumExp], attributes }) {
    const [labels, weight, , ...logits] = inputs as [Tensor, Tensor, Tensor, ...Tensor[]];
    const { labelSmoothing, vocabulary, firstColumn } = attributes as VocabularyCrossEntropyAttributes;
    let next = firstColumn;
    const gradients = logits.map((part) => {
      const place = { labelSmoothing, vocabulary, firstColumn: next };
      next += part.shape[1]!;
      return part.graph.apply(crossEntropyGradient, [part, labels, logSumExp!, weight], place)[0];
    });
    return [undefined, undefined, undefined, ...gradients];
  },
  lower({ inputs: [labels, , statistics], outputs, attributes }) {
    const { labelSmoothing, vocabulary, parts } = attributes as VocabularyCrossEntropyAttributes;
    const kernel = crossEntropyMerge({ rows: elementCount(labels!.shape), parts, vocabulary, labelSmoothing });
    return bind(kernel, [statistics!, labels!, ...outputs]);
  },
};
