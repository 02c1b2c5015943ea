/**
 * What a kernel is: the contract between the operators above and the devices below.
 *
 * A kernel is one unit of device work with every size fixed. It names its operands in binding order, computes on the
 * host with `reference` (the oracle), and renders to WGSL with `passes`. Sizes are constants in the text, so equal
 * kernels render to equal text, and a backend caches pipelines by text.
 *
 * Operands are flat. `length` counts elements. A backend binds each operand to a range of a buffer; no two operands of
 * one dispatch share a buffer unless neither is written (WebGPU forbids a buffer that is both read and written in one
 * dispatch, even in disjoint ranges), which is why in-place work is a single `update` operand.
 */

import type { Choices } from "./choices.ts";

/** Element types as stored. Half types are storage alone, with `f32` arithmetic: `storage.ts` on devices, `host.ts` here. */
export type ElementType = "f32" | "f16" | "bf16" | "u32" | "i32";

/** Bytes of one element. */
export const elementBytes: Readonly<Record<ElementType, number>> = { f32: 4, u32: 4, i32: 4, f16: 2, bf16: 2 };

/**
 * `read`: only read. `write`: every element is written, old content ignored. `update`: read and written (in place or
 * accumulated into). `scratch`: workspace that only this kernel's passes see; content undefined before and after.
 */
export type Access = "read" | "write" | "update" | "scratch";

export interface Operand {
  readonly name: string;
  readonly type: ElementType;
  /** Elements. At least one: WebGPU has no empty bindings. */
  readonly length: number;
  readonly access: Access;
}

/** Host views of operands. Float operands may be `Float64Array`, so that an oracle can be checked in double. */
export type HostArray = Float32Array | Float64Array | Uint32Array | Int32Array;

/** What the renderer may know of a device. */
export interface DeviceTraits {
  /** Provider, maker, model and driver, as far as WebGPU tells them: what a tuner's choices hold for. */
  readonly adapter?: string;
  /** Which of several forms of a kernel to render. @default the shipped ones */
  readonly choices?: Choices;
  readonly provider: "deno" | "dawn" | "none";
  /** For people: "llvmpipe (LLVM 15.0.6, 256 bits)", "NVIDIA H200". */
  readonly description: string;
  /** True for a rasteriser in software: workgroup memory is as slow there as global memory. */
  readonly software: boolean;
  /** Lanes of a subgroup, 0 where the `subgroups` feature is absent. */
  readonly subgroupSize: number;
  /** A texture is read for far less than a buffer, even with a copy made for it first: see `images.ts`. @default {false} */
  readonly imageReads?: boolean;
  readonly features: {
    readonly subgroups: boolean;
    readonly shaderF16: boolean;
    readonly timestampQuery: boolean;
    /** Subgroups of 32 multiply matrices of 16 x 16 `f16`, with sums in `f32` (`matrix_unit.ts`). */
    readonly matrixUnits: boolean;
  };
  readonly limits: {
    readonly maxBufferSize: number;
    readonly maxStorageBufferBindingSize: number;
    readonly maxStorageBuffersPerShaderStage: number;
    readonly maxComputeWorkgroupsPerDimension: number;
    readonly maxComputeInvocationsPerWorkgroup: number;
    readonly maxComputeWorkgroupStorageSize: number;
    readonly minStorageBufferOffsetAlignment: number;
  };
}

/** An operand that a pass reads as a texture of `u32` texels: a copy of it made just before the dispatch (`images.ts`). */
export interface ImageBinding {
  readonly operand: number;
  /** Words of a texel. */
  readonly words: 1 | 2 | 4;
}

/** One dispatch: `@group(0) @binding(i)` is operand `operands[i]`, and past those the images in order. */
export interface Pass {
  readonly code: string;
  /** @default {"main"} */
  readonly entryPoint?: string;
  readonly workgroups: readonly [number, number, number];
  readonly operands: readonly number[];
  /** @default none */
  readonly images?: readonly ImageBinding[];
}

export interface Kernel {
  /** Folder and form, for profiles and messages: "rmsnorm.forward". */
  readonly name: string;
  /** Sizes for people, where the operands' lengths do not tell: "4096 x 768 x 768". */
  readonly shape?: string;
  readonly operands: readonly Operand[];
  /** Tokens of a segment where operands `start` and `end` tell segments: what it is to be measured with. */
  readonly segment?: number;
  /** Least work: each input read once, each output written once, multiply and add counted as two. */
  readonly cost: { readonly flops: number; readonly bytes: number };
  /** Computes on the host, in double where it sums, into views given in operand order (scratch included). */
  reference(views: readonly HostArray[]): void;
  /** Renders to WGSL for a device, best form first thought of for that device. */
  passes(traits: DeviceTraits): readonly Pass[];
}

/**
 * Spreads `groups` workgroups over two axes, since an axis holds at most 65,535. The kernel recovers the linear index as
 * `workgroup_id.y * x + workgroup_id.x` with `x` from here, and must guard indexes past `groups`.
 *
 * @example
 * ```ts
 * import { spread } from "./kernel.ts";
 * console.assert(spread(100)[0] === 100);
 * console.assert(spread(70_000)[0] * spread(70_000)[1] >= 70_000);
 * ```
 */
export function spread(groups: number, perAxis = 65_535): [number, number, number] {
  if (groups <= perAxis) return [Math.max(1, groups), 1, 1];
  const rows = Math.ceil(groups / perAxis);
  return [Math.ceil(groups / rows), rows, 1];
}

/** Bytes moved when each operand is touched once as its access says. */
export function leastBytes(operands: readonly Operand[]): number {
  let bytes = 0;
  for (const { type, length, access } of operands) {
    if (access === "scratch") continue;
    bytes += elementBytes[type] * length * (access === "update" ? 2 : 1);
  }
  return bytes;
}
