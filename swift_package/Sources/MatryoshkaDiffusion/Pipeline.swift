import DiffusionCore
import Foundation
import Synchronization

/// Makes pictures from prompts with one bundle, one picture at a time.
///
/// ```swift
/// let pipeline = Pipeline(bundle: bundle, runtime: runtime)
/// for try await step in pipeline.generate(PictureRequest(prompt: "red heart")) {
///   if let finished = step.finished { show(finished.picture) }
/// }
/// ```
public actor Pipeline {
  /// The bundle that the pipeline runs.
  public nonisolated let bundle: BundleFolder
  private let runtime: any PackageRuntime
  private let options: Options
  private var current: Run?
  private var interruption: String?
  private var waiting: [CheckedContinuation<Void, Never>] = []

  /// The settings of a pipeline.
  public struct Options: Sendable {
    /// Which packages stay loaded.
    public var memory: MemoryPolicy = .automatic
    /// Text features, for bundles without a text encoder or to avoid running it.
    public var features: EmbeddingCache?
    /// Checks every prompt, and every negative prompt that is not empty.
    public var promptFilter: (any PromptFilter)?
    /// Checks every picture.
    public var imageFilter: (any ImageFilter)?
    /// Bytes that may be allocated; nil if unknown.
    public var availableMemory: @Sendable () -> Int? = MemoryPolicy.availableMemory

    /// Creates the default settings.
    public init() {}
  }

  /// - Parameter runtime: a runtime of the same bundle, for this pipeline alone.
  public init(bundle: BundleFolder, runtime: any PackageRuntime, options: Options = Options()) {
    (self.bundle, self.runtime, self.options) = (bundle, runtime, options)
  }

  /// Makes a picture. Ending the stream, or the task that reads it, cancels the run.
  ///
  /// A newer step replaces a step that nobody has read. The last step carries the result and is never
  /// dropped. On every error, cancellation included, all packages are released before the stream
  /// ends. Throws ``MatryoshkaError``; it is `busy` while another picture is being made.
  public nonisolated func generate(
    _ request: PictureRequest, previews: Previews = .none
  ) -> AsyncThrowingStream<Step, any Error> {
    stream(.fresh(request), previews)
  }

  /// Continues from a snapshot. Gives the same picture as an uninterrupted run.
  public nonisolated func resume(
    _ snapshot: Snapshot, previews: Previews = .none
  ) -> AsyncThrowingStream<Step, any Error> {
    stream(.later(snapshot), previews)
  }

  /// Stops the current run after the package at work. The stream then throws
  /// ``MatryoshkaError/interrupted(_:reason:)`` with a snapshot. Does nothing if there is no run.
  ///
  /// Call it when the app goes to the background, where the system ends GPU work.
  public func interrupt(reason: String = "on request") {
    if current != nil { interruption = reason }
  }

  /// Loads the packages that the memory policy keeps, so that the first picture starts at once.
  public func prepare() async throws {
    guard current == nil else { throw MatryoshkaError.busy }
    let policy = try resolvedPolicy()
    guard policy == .resident else { return }
    do {
      for package in Manifest.Phase.allCases.flatMap({ bundle.manifest.packages(of: $0) }) {
        try Task.checkCancellation()
        try await runtime.load(package)
      }
    } catch {
      await runtime.release()
      throw error
    }
  }

  /// Releases everything after the current run.
  public func release() async {
    await idle()
    await runtime.release()
  }

  /// Returns when no run is active.
  public func idle() async {
    while current != nil {
      await withCheckedContinuation { waiting.append($0) }
    }
  }

  private enum Start: Sendable {
    case fresh(PictureRequest)
    case later(Snapshot)
  }

  /// Marks the run of one stream, and tells the next run whether this one is already ending.
  private final class Run: Sendable {
    let isCancelled = Mutex(false)
  }

  private nonisolated func stream(
    _ start: Start, _ previews: Previews
  ) -> AsyncThrowingStream<Step, any Error> {
    AsyncThrowingStream(bufferingPolicy: .bufferingNewest(1)) { continuation in
      let run = Run()
      let task = Task {
        do {
          try await self.perform(run, start, previews) { continuation.yield($0) }
          continuation.finish()
        } catch {
          continuation.finish(throwing: error)
        }
      }
      continuation.onTermination = { _ in
        run.isCancelled.withLock { $0 = true }
        task.cancel()
      }
    }
  }

  private func perform(
    _ run: Run, _ start: Start, _ previews: Previews, _ yield: @Sendable (Step) -> Void
  ) async throws {
    while let other = current {
      guard other.isCancelled.withLock({ $0 }) else { throw MatryoshkaError.busy }
      await idle()
    }
    try Task.checkCancellation()
    current = run
    interruption = nil
    defer {
      current = nil
      for one in waiting { one.resume() }
      waiting = []
    }
    do {
      let policy = try resolvedPolicy()
      var walk = try await begin(start, policy)
      try await finish(&walk, previews, yield)
      if policy != .resident { await runtime.release() }
    } catch {
      await runtime.release()
      throw error
    }
  }

  private func resolvedPolicy() throws -> MemoryPolicy {
    try options.memory.resolved(bundle.manifest.peakMemory, available: options.availableMemory())
  }

  private func begin(_ start: Start, _ policy: MemoryPolicy) async throws -> Walk {
    switch start {
    case .fresh(let request):
      try await check(request)
      return try Walk(bundle, request, policy)
    case .later(let snapshot):
      try await check(snapshot.request)
      return try Walk(bundle, snapshot, policy)
    }
  }

  private func check(_ request: PictureRequest) async throws {
    guard let filter = options.promptFilter else { return }
    for prompt in [request.prompt, request.negativePrompt] where !prompt.isEmpty {
      if let reason = await filter.refusal(of: prompt) {
        throw MatryoshkaError.promptRefused(reason: reason)
      }
    }
  }

  /// Runs the text, then all steps. A failure after the first step becomes an interruption.
  private func finish(
    _ walk: inout Walk, _ previews: Previews, _ yield: @Sendable (Step) -> Void
  ) async throws {
    let chain = Chain(bundle: bundle, runtime: runtime, policy: walk.policy)
    do {
      let prompts = try await chain.condition(walk.captions, options.features, pause)
      while !walk.isFinished {
        let step = try await advance(&walk, chain, prompts, previews)
        yield(step)
      }
    } catch let stop as Stop {
      throw MatryoshkaError.interrupted(walk.snapshot, reason: stop.reason)
    } catch let error as MatryoshkaError where walk.stepsDone > 0 && error.isOfTheRuntime {
      try Task.checkCancellation()
      throw MatryoshkaError.interrupted(
        walk.snapshot, reason: error.errorDescription ?? "a package failed")
    }
  }

  private func advance(
    _ walk: inout Walk, _ chain: Chain, _ prompts: [Chain.Conditioning], _ previews: Previews
  ) async throws -> Step {
    let clock = ContinuousClock()
    let start = clock.now
    let predictions = try await chain.predict(
      walk.states, time: walk.time, jump: walk.jump, firstLevel: walk.firstLevel, prompts, pause)
    let clean = try walk.advance(predictions)
    let shown = try walk.pictures(clean) { previews.include($0) }
    let finished = walk.isFinished ? try walk.finished() : nil
    try await check(shown + (finished?.pictures.prefix(1) ?? []))
    let taken = (clock.now - start).components
    return Step(
      index: walk.stepsDone - 1, total: walk.total, previews: shown, finished: finished,
      seconds: Double(taken.seconds) + Double(taken.attoseconds) * 1e-18,
      thermalState: .current)
  }

  private func check(_ pictures: [Picture]) async throws {
    guard let filter = options.imageFilter else { return }
    for picture in pictures {
      if let reason = await filter.refusal(of: picture) {
        throw MatryoshkaError.pictureRefused(reason: reason)
      }
    }
  }

  /// Called between packages, where a run ends if it was cancelled or interrupted.
  private func pause() throws {
    try Task.checkCancellation()
    if let reason = interruption { throw Stop(reason: reason) }
  }
}

/// Thrown after a call of `interrupt`.
private struct Stop: Error {
  let reason: String
}

extension MatryoshkaError {
  /// Whether a later attempt may succeed.
  fileprivate var isOfTheRuntime: Bool {
    switch self {
    case .packageFailed, .serverFailed: true
    default: false
    }
  }
}
