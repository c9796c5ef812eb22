/// Finds pieces by their bytes with a double array: the child of node n for byte b is at
/// `base[n] + b`, if `parent` there is n.
struct PieceTrie {
  private var base: [Int32] = [0]
  private var parent: [Int32] = [-1]
  private var value: [Int32] = [-1]
  private var firstFree = 1

  static let root: Int32 = 0

  /// - Parameter pieces: each piece with its id, without duplicates.
  init(_ pieces: [(text: [UInt8], id: Int32)]) {
    let sorted = pieces.sorted { $0.text.lexicographicallyPrecedes($1.text) }
    // Breadth first: a node, and the pieces below it, which share `depth` bytes.
    var pending: [(node: Int, range: Range<Int>, depth: Int)] = [(0, 0..<sorted.count, 0)]
    var done = 0
    while done < pending.count {
      let (node, range, depth) = pending[done]
      done += 1
      var first = range.lowerBound
      if first < range.upperBound, sorted[first].text.count == depth {
        value[node] = sorted[first].id
        first += 1
      }
      var children: [(byte: UInt8, range: Range<Int>)] = []
      while first < range.upperBound {
        let byte = sorted[first].text[depth]
        var end = first + 1
        while end < range.upperBound, sorted[end].text[depth] == byte { end += 1 }
        children.append((byte, first..<end))
        first = end
      }
      guard !children.isEmpty else { continue }
      let start = place(children.map(\.byte))
      base[node] = Int32(start)
      for child in children {
        let index = start + Int(child.byte)
        parent[index] = Int32(node)
        pending.append((index, child.range, depth + 1))
      }
    }
  }

  /// The child of a node, or nil.
  @inline(__always)
  func child(_ node: Int32, _ byte: UInt8) -> Int32? {
    let index = Int(base[Int(node)]) + Int(byte)
    return index < parent.count && parent[index] == node ? Int32(index) : nil
  }

  /// The piece that ends at a node, or -1.
  @inline(__always)
  func piece(_ node: Int32) -> Int32 { value[Int(node)] }

  /// A base from which the cells of all these bytes are free.
  private mutating func place(_ bytes: [UInt8]) -> Int {
    while firstFree < parent.count, parent[firstFree] >= 0 { firstFree += 1 }
    let lowest = Int(bytes[0])
    var start = max(firstFree - lowest, 1)
    var tries = 0
    while bytes.contains(where: { start + Int($0) < parent.count && parent[start + Int($0)] >= 0 }) {
      start += 1
      tries += 1
      // From then on, skip a crowded stretch: this trades memory for time.
      if tries == 256 { firstFree = max(firstFree, start + lowest - 64) }
    }
    let needed = start + 256
    if needed > parent.count {
      base += [Int32](repeating: 0, count: needed - base.count)
      value += [Int32](repeating: -1, count: needed - value.count)
      parent += [Int32](repeating: -1, count: needed - parent.count)
    }
    return start
  }
}
