/**
 * The WebGPU backend. Commands are made ready once: pipelines cached by text, bind groups by pipeline and ranges; a
 * submission replays them through the encoder of its turn (`recorder.ts`), in as few compute passes as copies allow.
 *
 * The device reports faults later than the call that caused them. They are kept, and thrown by the next call: a device
 * that has failed once computes nothing that can be trusted, so every later call throws too.
 */
import { ChoiceTable } from "../../../kernels/choices.ts";
import { fill } from "../../../kernels/elementwise/mod.ts";
import type { DeviceTraits, Kernel, Pass } from "../../../kernels/kernel.ts";
import type { Backend, Command, CommandList, DeviceBuffer, Range, ReadTicket } from "../backend.ts";
import { Ledger, operandBytes } from "../ledger.ts";
import { settle } from "./dawn.ts";
import { createImages, type Image } from "./images.ts";
import { createPipelineCache } from "./pipelines.ts";
import { type DeviceOptions, openDevice, type Provider } from "./provider.ts";
import { openReadback } from "./readback.ts";
import { type Copy, type Extent, type Part, type Recordable, Recorder } from "./recorder.ts";
import { createTimer, type Timer } from "./timer.ts";

/**
 * An upload goes in pieces, and a long one is submitted as it goes: the device's copy of a piece is memory that served
 * before, where one of the whole would be fresh from the system, which costs several times the copying.
 */
const uploadBytes = 1 << 20, mostUnsubmitted = 16 << 20;

/** What of a list takes a GPU some 0.05 ms, as handing it over does the host. */
const briefBytes = 64 << 20, briefFlops = 1e9;

interface GpuBuffer extends DeviceBuffer {
  readonly id: number;
  readonly gpu: GPUBuffer;
  /** Keys of the bind groups that hold this buffer. */
  readonly bindGroups: Set<string>;
}

type ReadyDispatch = {
  readonly pipeline: GPUComputePipeline;
  readonly bindGroup: GPUBindGroup;
  readonly workgroups: readonly [number, number, number];
  /** Filled just before it. */
  readonly images: readonly Image[];
};
type ReadyCommand =
  | { readonly kind: "dispatch"; readonly kernel: Kernel; readonly dispatches: readonly ReadyDispatch[] }
  | { readonly kind: "copy" } & Copy
  | { readonly kind: "clear"; readonly target: Extent; readonly zeros: readonly ReadyDispatch[] };

interface ReadyList extends CommandList, Recordable {}

export interface WebGpuOptions extends DeviceOptions {
  /** Lower ones than the device's, which plans and dispatches then keep to. */
  readonly limits?: Partial<DeviceTraits["limits"]>;
  /** Lists wait for each other to share objects (`recorder.ts`). @default {true on Dawn} */
  readonly gather?: boolean;
}

/**
 * @throws {Error} when there is no adapter, or the device refuses to open.
 */
export async function openWebGpuBackend(
  provider: Provider,
  { limits = {}, gather = provider === "dawn", ...options }: WebGpuOptions = {},
): Promise<Backend> {
  const { device, traits: whole } = await openDevice(provider, options);
  const choices = new ChoiceTable();
  const traits: DeviceTraits = { ...whole, choices, limits: { ...whole.limits, ...limits } };
  const ledger = new Ledger<GpuBuffer>("webgpu", traits);
  const pipelines = createPipelineCache(device);
  const images = createImages(device);
  const pipelineIds = new Map<GPUComputePipeline, number>();
  const passesOf = new WeakMap<Kernel, readonly Pass[]>();
  const bindGroups = new Map<string, GPUBindGroup>();
  let nextBufferId = 0;
  let failure: Error | undefined;
  let disposed = false;
  let timer: Timer | undefined;

  function fail(error: Error): void {
    if (!disposed) failure ??= error;
  }
  device.addEventListener("uncapturederror", (event) => {
    event.preventDefault(); // or the runtime prints it as well
    fail(new Error(`The WebGPU device reported an error: ${(event as GPUUncapturedErrorEvent).error.message.trim()}`));
  });
  device.lost.then(({ reason, message }) => fail(new Error(`The WebGPU device was lost (${reason}): ${message}`)));

  function check(): void {
    if (disposed) throw new Error("Cannot use the webgpu backend: it was disposed of");
    // A fresh error each time, so that the stack shows who asked; the first report is the cause.
    if (failure !== undefined) throw new Error(failure.message, { cause: failure });
  }

  /** Bytes uploaded since the last submission, which alone lets the device free its copies of them. */
  let unsubmitted = 0;
  const recorder = new Recorder(device, (encoder) => {
    timer?.resolve(encoder);
    unsubmitted = 0;
  }, gather);
  const readback = await openReadback(device, provider, (copies) => recorder.flushWith(copies));
  const gpuRange = (range: Range) => ({ buffer: gpuBuffer(range), offset: range.offset, bytes: range.bytes });
  const checked = <Taken>(ticket: ReadTicket<Taken>): ReadTicket<Taken> => ({
    wait() {
      check();
      ticket.wait();
    },
    take() {
      check();
      return ticket.take();
    },
    async ready() {
      check();
      await ticket.ready();
    },
  });
  function gpuBuffer({ buffer }: Range): GPUBuffer {
    return (buffer as GpuBuffer).gpu;
  }

  function bindGroupOf(
    pipeline: GPUComputePipeline,
    kernel: Kernel,
    pass: Pass,
    ranges: readonly Range[],
    pictures: readonly Image[],
  ) {
    let pipelineId = pipelineIds.get(pipeline);
    if (pipelineId === undefined) pipelineIds.set(pipeline, pipelineId = pipelineIds.size);
    const bindings = pass.operands.map((operand) => ({
      buffer: ranges[operand].buffer as GpuBuffer,
      offset: ranges[operand].offset,
      size: operandBytes(kernel.operands[operand]),
    }));
    const key = [
      pipelineId,
      ...bindings.map(({ buffer, offset, size }) => `${buffer.id}+${offset}:${size}`),
      ...pictures.map(({ id }) => `image ${id}`),
    ].join(" ");
    let bindGroup = bindGroups.get(key);
    if (bindGroup === undefined) {
      bindGroup = device.createBindGroup({
        label: kernel.name,
        layout: pipeline.getBindGroupLayout(0),
        entries: [
          ...bindings.map(({ buffer, offset, size }) => ({ buffer: buffer.gpu, offset, size })),
          ...pictures.map(({ view }) => view),
        ].map((resource, binding) => ({ binding, resource })),
      });
      bindGroups.set(key, bindGroup);
      for (const { buffer } of bindings) buffer.bindGroups.add(key);
    }
    return bindGroup;
  }

  function rendered(kernel: Kernel): readonly Pass[] {
    let passes = passesOf.get(kernel);
    if (passes === undefined) passesOf.set(kernel, passes = kernel.passes(traits));
    return passes;
  }

  /** Compiles what is new, one text beside the other where the provider has threads for it. */
  const compile = (commands: readonly Command[]) =>
    Promise.all(
      commands.flatMap((command) => command.kind === "dispatch" ? [command.kernel] : []).flatMap((kernel) =>
        rendered(kernel).map(({ code, entryPoint = "main" }) => pipelines.get(kernel.name, code, entryPoint))
      ),
    );

  async function ready(command: Command): Promise<ReadyCommand> {
    if (command.kind === "copy") {
      return { kind: "copy", source: gpuRange(command.source), target: gpuRange(command.target) };
    }
    if (command.kind === "clear") {
      return { kind: "clear", target: gpuRange(command.target), zeros: await zeros(command.target) };
    }
    return { kind: "dispatch", kernel: command.kernel, dispatches: await dispatchesOf(command.kernel, command.ranges) };
  }

  /** Dispatches that clear a range, where ending the pass would be dearer. */
  async function zeros(range: Range): Promise<ReadyDispatch[]> {
    const { minStorageBufferOffsetAlignment, maxStorageBufferBindingSize } = traits.limits;
    const most = Math.min(briefBytes, maxStorageBufferBindingSize);
    if (!gather || range.bytes > most || range.offset % minStorageBufferOffsetAlignment !== 0) return [];
    return await dispatchesOf(fill({ length: range.bytes / 4, value: 0 }), [range]);
  }

  async function dispatchesOf(kernel: Kernel, ranges: readonly Range[]): Promise<ReadyDispatch[]> {
    const dispatches: ReadyDispatch[] = [];
    for (const pass of rendered(kernel)) {
      const pipeline = await pipelines.get(kernel.name, pass.code, pass.entryPoint ?? "main");
      // Faults of this call alone, so pushed and popped with no await between.
      device.pushErrorScope("validation");
      const pictures = (pass.images ?? []).map(({ operand, words }, index) =>
        images.of({ gpu: gpuBuffer(ranges[operand]), offset: ranges[operand].offset }, {
          words,
          bytes: operandBytes(kernel.operands[operand]),
          index,
        })
      );
      const bindGroup = bindGroupOf(pipeline, kernel, pass, ranges, pictures);
      const refusal = await device.popErrorScope();
      if (refusal !== null) {
        bindGroups.forEach((cached, key) => cached === bindGroup && bindGroups.delete(key));
        throw new Error(`Cannot bind the operands of kernel ${kernel.name}: ${refusal.message.trim()}`);
      }
      const most = traits.limits.maxComputeWorkgroupsPerDimension;
      if (pass.workgroups.some((groups) => !Number.isInteger(groups) || groups < 1 || groups > most)) {
        throw new RangeError(
          `Cannot dispatch kernel ${kernel.name}: each axis takes 1 to ${most} workgroups, got ` +
            pass.workgroups.join(" x "),
        );
      }
      dispatches.push({ pipeline, bindGroup, workgroups: pass.workgroups, images: pictures });
    }
    return dispatches;
  }

  function record(command: ReadyCommand, part: Part): void {
    switch (command.kind) {
      case "dispatch":
        for (const [index, { pipeline, bindGroup, workgroups, images }] of command.dispatches.entries()) {
          if (timer !== undefined) part.endPass();
          images.forEach((image) => image.fill(part.encoder));
          part.dispatch(pipeline, bindGroup, workgroups, timer?.next(command.kernel, index === 0));
        }
        break;
      case "copy":
        part.copy(command);
        break;
      case "clear":
        if (command.zeros.length > 0 && timer === undefined) { // which do not end the pass
          command.zeros.forEach(({ pipeline, bindGroup, workgroups }) =>
            part.dispatch(pipeline, bindGroup, workgroups)
          );
        } else part.encoder.clearBuffer(command.target.buffer, command.target.offset, command.target.bytes);
        break;
      default:
        command satisfies never;
    }
  }

  /** The list with what it takes to record it. */
  function recordable(commands: readonly Command[], readyCommands: readonly ReadyCommand[]): ReadyList {
    const extents = commands.flatMap((command) => {
      if (command.kind === "dispatch") return command.ranges;
      return command.kind === "copy" ? [command.source, command.target] : [command.target];
    }).map(gpuRange);
    const copies = readyCommands.filter((command) => command.kind === "copy");
    return {
      commands: [...commands],
      buffers: new Set(extents.map(({ buffer }) => buffer)),
      brief: isBrief(commands),
      record(part) {
        if (copies.length === readyCommands.length) return part.copyLater(copies);
        part.before(extents);
        for (const command of readyCommands) record(command, part);
      },
    };
  }

  const backend: Backend = {
    name: "webgpu",
    get hostTimes() {
      const { record: encode, queue } = recorder.seconds;
      return { encode, queue };
    },
    choices,
    traits,
    get allocatedBytes() {
      return ledger.allocatedBytes;
    },
    allocate(bytes, label) {
      check();
      ledger.checkSize(bytes, label);
      device.pushErrorScope("out-of-memory");
      const gpu = device.createBuffer({
        label,
        size: bytes,
        usage: GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST,
      });
      device.popErrorScope().then((refusal) => {
        if (refusal === null) return;
        fail(
          new RangeError(
            `Cannot allocate buffer "${label}": ${bytes} bytes asked with ${ledger.allocatedBytes} in use, and the ` +
              `device (${traits.description}) is out of memory`,
          ),
        );
      });
      return ledger.add({ label, bytes, id: nextBufferId++, gpu, bindGroups: new Set() });
    },
    release(buffer) {
      const { gpu, bindGroups: keys } = ledger.remove(buffer);
      for (const key of keys) bindGroups.delete(key);
      recorder.release(gpu);
      gpu.destroy(); // once the work submitted so far no longer needs it
    },
    upload(target, data) {
      check();
      const { gpu } = ledger.checkUpload(target, data);
      if (recorder.uses(gpu)) recorder.flush(); // what is recorded comes first
      let bytes = new Uint8Array(data.buffer as ArrayBuffer, data.byteOffset, data.byteLength);
      if (bytes.length % 4 !== 0) { // an odd count of half-width elements: WebGPU writes whole words
        const padded = new Uint8Array(Math.ceil(bytes.length / 4) * 4);
        padded.set(bytes);
        bytes = padded;
      }
      // Dawn's package reads shared memory from a wrong address and takes the process down.
      const unshared = provider === "dawn" && (bytes.buffer as ArrayBufferLike) instanceof SharedArrayBuffer;
      for (let begin = 0; begin < bytes.length; begin += uploadBytes) {
        const size = Math.min(uploadBytes, bytes.length - begin);
        if (unshared) device.queue.writeBuffer(gpu, target.offset + begin, bytes.slice(begin, begin + size));
        else device.queue.writeBuffer(gpu, target.offset + begin, bytes, begin, size);
        unsubmitted += size;
        if (unsubmitted < mostUnsubmitted) continue;
        device.queue.submit([]);
        unsubmitted = 0;
      }
    },
    async prepare(commands): Promise<ReadyList> {
      check();
      for (const command of commands) ledger.checkCommand(command);
      await compile(commands);
      const readyCommands: ReadyCommand[] = [];
      for (const command of commands) readyCommands.push(await ready(command));
      return recordable(commands, readyCommands);
    },
    submit(list) {
      check();
      const ready = list as ReadyList;
      if (ready.record === undefined) {
        throw new TypeError("Cannot submit: the command list is not from this prepare()");
      }
      recorder.add(ready);
    },
    read(ranges) {
      check();
      ledger.checkRead(ranges);
      return checked(readback.read(ranges.map(gpuRange)));
    },
    readInto(ranges, places) {
      check();
      ledger.checkRead(ranges, places);
      return checked(readback.readInto(ranges.map(gpuRange), places));
    },
    async finish() {
      check();
      recorder.flush();
      await device.queue.onSubmittedWorkDone();
      await readback.settle();
      // Errors arrive as events, one turn of the event loop behind the work.
      await new Promise((resolve) => setTimeout(resolve, 0));
      check();
    },
    ...(traits.features.timestampQuery && {
      async profile(body) {
        check();
        if (timer !== undefined) throw new Error("Cannot profile: the webgpu backend is being profiled already");
        recorder.lookAhead(false);
        const running = timer = createTimer(device);
        try {
          await body();
          recorder.flush();
          timer = undefined;
          return await running.read();
        } finally {
          timer = undefined;
          recorder.lookAhead(true);
          running[Symbol.dispose]();
        }
      },
    }),
    [Symbol.dispose]() {
      disposed = true;
      recorder[Symbol.dispose]();
      for (const { gpu } of ledger.buffers) gpu.destroy();
      ledger.clear();
      bindGroups.clear();
      device.destroy();
      if (provider === "dawn") settle();
    },
  };
  return backend;
}

function isBrief(commands: readonly Command[]): boolean {
  let bytes = 0, flops = 0;
  for (const command of commands) {
    if (command.kind === "dispatch") {
      bytes += command.kernel.cost.bytes;
      flops += command.kernel.cost.flops;
    } else bytes += command.kind === "copy" ? 2 * command.source.bytes : command.target.bytes;
  }
  return bytes <= briefBytes && flops <= briefFlops;
}
