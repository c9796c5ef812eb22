/// Lets one caller in at a time, in the order in which they come. An actor alone does not: whoever
/// waits inside of it lets the next one in.
package actor OneAtATime {
  private var isTaken = false
  private var waiting: [CheckedContinuation<Void, Never>] = []

  package init() {}

  package func run<Result: Sendable>(
    _ work: @Sendable () async throws -> Result
  ) async throws -> Result {
    if isTaken {
      await withCheckedContinuation { waiting.append($0) }
    }
    isTaken = true
    defer {
      // Handed on without being free in between, so that nobody comes first who came later.
      if waiting.isEmpty { isTaken = false } else { waiting.removeFirst().resume() }
    }
    try Task.checkCancellation()
    return try await work()
  }
}
