/** Worlds of ranks in this process that are joined by TCP connections, whose sockets count what is written to them. */
import { headerBytes } from "../src/comm/transport/frame.ts";
import { type FrameStream, plainFrames } from "../src/comm/transport/frame_stream.ts";
import { createTransport, type Transport } from "../src/comm/transport/transport.ts";

const hostname = "127.0.0.1";

/** What one rank has written. */
export interface Written {
  /** Bytes that its sockets took. */
  socket: number;
  /** Of them, headers of frames. */
  headers: number;
  /** Frames beside those of messages: questions and farewells, with their bodies. */
  control: number;
  /** Bodies of messages, by the number of their group or pair. */
  readonly messages: Map<number, number>;
}

export function countingSockets(): {
  readonly written: readonly Written[];
  join(world: number): Promise<Transport[]>;
} {
  const written: Written[] = [];
  const counted = (connection: Deno.TcpConn, of: Written): FrameStream => {
    const { write, ...stream } = plainFrames({
      read: (into) => connection.read(into),
      async write(bytes) {
        const taken = await connection.write(bytes);
        of.socket += taken;
        return taken;
      },
      close: () => connection.close(),
    });
    return {
      ...stream,
      write(frame, body) {
        of.headers += headerBytes;
        if (frame.kind === "control") of.control += frame.bodyBytes;
        else of.messages.set(frame.tag.group, (of.messages.get(frame.tag.group) ?? 0) + frame.bodyBytes);
        return write(frame, body);
      },
    };
  };
  return {
    written,
    async join(world) {
      const streams = Array.from({ length: world }, () => new Map<number, FrameStream>());
      for (let rank = 0; rank < world; rank++) written.push({ socket: 0, headers: 0, control: 0, messages: new Map() });
      using listener = Deno.listen({ hostname, port: 0 });
      for (let a = 0; a < world; a++) {
        for (let b = a + 1; b < world; b++) {
          const ends = await Promise.all([
            listener.accept(),
            Deno.connect({ hostname, port: listener.addr.port }),
          ]);
          [a, b].forEach((rank, end) => {
            ends[end]!.setNoDelay();
            streams[rank]!.set(rank === a ? b : a, counted(ends[end]!, written[rank]!));
          });
        }
      }
      return streams.map((own, rank) => createTransport({ rank, world, streams: own }));
    },
  };
}
