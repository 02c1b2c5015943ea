/** Arenas that are filled one after the other, as few as a binding's size allows. */
export class Arenas {
  /** Bytes of each arena. */
  readonly bytes: number[] = [];

  /** @param largest bytes of an arena that holds more than one piece; a piece that is larger has one of its own */
  constructor(readonly largest: number) {}

  /** @param together bytes of the pieces, this one the first, that must lie in one arena. @default `size` */
  place(size: number, together = size): { readonly arena: number; readonly offset: number } {
    let arena = this.bytes.length - 1;
    if (arena < 0 || this.bytes[arena]! + together > this.largest) arena = this.bytes.push(0) - 1;
    const offset = this.bytes[arena]!;
    this.bytes[arena] = offset + size;
    return { arena, offset };
  }
}
