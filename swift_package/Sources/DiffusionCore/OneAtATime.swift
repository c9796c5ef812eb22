/// Lets one caller in at a time, in the order in which they come. An actor alone does not: whoever
/// waits inside of it lets the next one in.
package actor OneAtATime {
  private var isTaken = false
  private var waiting: [CheckedContinuation<Void, Never>] = []

  package init() {}

  package func run<Result: Sendable>(
    _ work: @Sendable () async throws -> Result
  ) async throws -> Result {
    await take()
    defer { handOn() }
    try Task.checkCancellation()
    return try await work()
  }

  /// For work that a caller who was cancelled needs all the more, such as releasing memory.
  package func runEvenIfCancelled(_ work: @Sendable () async -> Void) async {
    await take()
    defer { handOn() }
    await work()
  }

  private func take() async {
    if isTaken {
      await withCheckedContinuation { waiting.append($0) }
    }
    isTaken = true
  }

  /// Without being free in between, so that nobody comes first who came later.
  private func handOn() {
    if waiting.isEmpty { isTaken = false } else { waiting.removeFirst().resume() }
  }
}
