/**
 * Pipelines, cached by text. Sizes are constants in a kernel's text, so equal kernels share one pipeline, and a refused
 * text is reported once with the lines around the fault.
 */
import { messageOf } from "./provider.ts";

export interface PipelineCache {
  /**
   * The pipeline of a text, compiled if new. Rejects with the kernel's name, the compiler's message and the numbered
   * lines around it. `TROUPE_PRINT_WGSL=name` in the environment prints the texts of that kernel (`*`: of all).
   */
  get(kernelName: string, code: string, entryPoint: string): Promise<GPUComputePipeline>;
  /** Distinct texts compiled. */
  readonly size: number;
}

/** @param printed kernel whose texts are printed; what the environment says, if left out */
export function createPipelineCache(device: GPUDevice, printed = wantedText()): PipelineCache {
  const pipelines = new Map<string, Promise<GPUComputePipeline>>();
  return {
    get size() {
      return pipelines.size;
    },
    get(kernelName, code, entryPoint) {
      const key = `${entryPoint}\n${code}`;
      let pipeline = pipelines.get(key);
      if (pipeline === undefined) {
        if (printed !== undefined && (printed === "*" || kernelName.startsWith(printed))) {
          console.error(`// ${kernelName}, entry point ${entryPoint}\n${code}`);
        }
        pipeline = compile(device, kernelName, code, entryPoint);
        pipelines.set(key, pipeline);
      }
      return pipeline;
    },
  };
}

async function compile(
  device: GPUDevice,
  kernelName: string,
  code: string,
  entryPoint: string,
): Promise<GPUComputePipeline> {
  // Each scope is popped before the next await, so that compilations under way together do not mix scopes.
  device.pushErrorScope("validation");
  const module = device.createShaderModule({ label: kernelName, code });
  const refusedModule = device.popErrorScope();
  let refusal = (await refusedModule)?.message;
  if (refusal === undefined) {
    try {
      return await device.createComputePipelineAsync({
        label: kernelName,
        layout: "auto",
        compute: { module, entryPoint },
      });
    } catch (error) {
      refusal = messageOf(error);
    }
  }
  const { messages } = await module.getCompilationInfo();
  const fault = messages.find(({ type }) => type === "error");
  const line = fault?.lineNum ?? 0;
  throw new SyntaxError(
    `Cannot compile kernel ${kernelName}: ${refusal.trim()}` + (line > 0 ? `\n${numberedLines(code, line)}` : ""),
  );
}

/** The lines around one, numbered, that one marked. */
export function numberedLines(code: string, line: number, around = 3): string {
  return code.split("\n")
    .map((text, i) => `${i + 1 === line ? ">" : " "} ${String(i + 1).padStart(4)} | ${text}`)
    .slice(Math.max(0, line - 1 - around), line + around)
    .join("\n");
}

function wantedText(): string | undefined {
  const variable = "TROUPE_PRINT_WGSL";
  if (Deno.permissions.querySync({ name: "env", variable }).state !== "granted") return undefined;
  return Deno.env.get(variable) || undefined;
}
