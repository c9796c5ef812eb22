import DiffusionCore
import SeededRandom
import Synchronization
import TestBundle
import Testing

import MatryoshkaDiffusion

/// An interruption reaches every run that was asked for before it, whatever came in between.
@Suite struct InterleavingTests {
  /// How a run ended.
  private enum End: Sendable {
    case finished, refused, cancelled
    case interrupted(String)
    case failed(String)
  }

  /// A run as the test remembers it.
  private final class Told {
    let steps: Steps
    let reader: Task<End, Never>
    /// Whether another run was at work or waiting, so that this one may be refused.
    let mayBeRefused: Bool
    var isCancelled = false
    var interruption: String?

    init(_ steps: Steps, _ reader: Task<End, Never>, mayBeRefused: Bool) {
      (self.steps, self.reader, self.mayBeRefused) = (steps, reader, mayBeRefused)
    }

    var isLive: Bool { !isCancelled && interruption == nil }
  }

  private static let steps = 20
  private static let rounds = 1000

  private func read(_ steps: Steps, _ snapshots: SnapshotShelf) -> Task<End, Never> {
    Task {
      do {
        for try await step in steps where step.finished != nil { return .finished }
        return .cancelled
      } catch MatryoshkaError.interrupted(let snapshot, let reason) {
        snapshots.put(snapshot)
        return .interrupted(reason)
      } catch MatryoshkaError.busy {
        return .refused
      } catch is CancellationError {
        return .cancelled
      } catch {
        return .failed("\(error)")
      }
    }
  }

  /// The newest snapshot.
  private final class SnapshotShelf: Sendable {
    private let last = Mutex<Snapshot?>(nil)

    func put(_ snapshot: Snapshot) { last.withLock { $0 = snapshot } }
    func take() -> Snapshot? { last.withLock { $0 } }
  }

  @Test func noInterruptionIsLostInAThousandInterleavings() async throws {
    let small = try SmallBundle()
    var random = SplitMix(seed: 20_261_128)
    for round in 0..<InterleavingTests.rounds {
      try await interleave(small.bundle, round, &random)
    }
  }

  private func interleave(
    _ bundle: BundleFolder, _ round: Int, _ random: inout SplitMix
  ) async throws {
    let gate = Gate()
    let runtime = ArithmeticRuntime(beforeRun: { _ in await gate.pass() }, beforeLoad: { await Task.yield() })
    let pipeline = Pipeline(bundle: bundle, runtime: runtime)
    let sampler = SamplerSettings(kind: .ddim, steps: InterleavingTests.steps)
    let request = PictureRequest(prompt: "", sampler: sampler)
    let snapshots = SnapshotShelf()
    var told: [Told] = []
    var preparations: [Task<Bool, Never>] = []
    var tickets = 0
    var script = ""
    for number in 0..<10 {
      let operation = number == 9 ? 3 : Int.random(in: 0...5, using: &random)
      script += " \(operation)"
      switch operation {
      case 0, 1:
        let snapshot = operation == 1 ? snapshots.take() : nil
        let busy = told.contains(where: \.isLive)
        let steps = snapshot.map { pipeline.resume($0) } ?? pipeline.generate(request)
        told.append(Told(steps, read(steps, snapshots), mayBeRefused: busy))
      case 2:
        guard let one = told.randomElement(using: &random) else { continue }
        one.steps.cancel()
        one.isCancelled = true
      case 3:
        pipeline.interrupt(reason: "\(number)")
        for one in told where one.isLive { one.interruption = "\(number)" }
      case 4:
        preparations.append(
          Task {
            do {
              try await pipeline.prepare()
              return true
            } catch {
              return error is CancellationError || error as? MatryoshkaError == .busy
            }
          })
      default:
        let count = Int.random(in: 1...3, using: &random)
        tickets += count
        gate.admit(count)
      }
      for _ in 0..<Int.random(in: 0...3, using: &random) { await Task.yield() }
    }
    gate.open()
    for (index, one) in told.enumerated() {
      let end = await one.reader.value
      let place = Comment(rawValue: "round \(round):\(script); run \(index) ended as \(end)")
      switch end {
      case .finished, .failed: Issue.record(place)
      case .refused: #expect(one.mayBeRefused || one.isCancelled, place)
      case .cancelled: #expect(one.isCancelled, place)
      case .interrupted(let reason): #expect(reason == one.interruption, place)
      }
    }
    for one in preparations { #expect(await one.value) }
    await pipeline.idle()
    // Beyond the tickets, only the package that each run had at work.
    #expect(await runtime.runs <= tickets + told.count)
  }

  @Test func itReachesTheRunThatWaitsForACancelledOne() async throws {
    let small = try SmallBundle()
    let (gate, (arrived, arrive)) = (Gate(), AsyncStream<Void>.makeStream())
    let runtime = ArithmeticRuntime { _ in
      arrive.finish()
      await gate.pass()
    }
    let pipeline = Pipeline(bundle: small.bundle, runtime: runtime)
    let request = PictureRequest(prompt: "", sampler: SamplerSettings(steps: 4))
    let first = pipeline.generate(request)
    for await _ in arrived {}
    first.cancel()
    let second = pipeline.generate(request)
    pipeline.interrupt()
    gate.open()
    await #expect(throws: MatryoshkaError.self) {
      for try await step in second { #expect(step.finished == nil) }
    }
    #expect(await runtime.runs == 1)
  }

  /// In the background, GPU work fails, and the app's interruption may come while it does.
  @Test func aPackageThatFailsDuringAnInterruptionLosesNothing() async throws {
    let small = try SmallBundle()
    let (gate, (arrived, arrive)) = (Gate(), AsyncStream<Void>.makeStream())
    let runtime = ArithmeticRuntime { number in
      guard number == 1 else { return }
      arrive.finish()
      await gate.pass()
      throw MatryoshkaError.packageFailed(package: "down_8", reason: "in the background")
    }
    let pipeline = Pipeline(bundle: small.bundle, runtime: runtime)
    let steps = pipeline.generate(PictureRequest(prompt: "", sampler: SamplerSettings(steps: 4)))
    for await _ in arrived {}
    pipeline.interrupt(reason: "test")
    gate.open()
    do {
      for try await _ in steps {}
      Issue.record("it was not interrupted")
    } catch MatryoshkaError.interrupted(let snapshot, let reason) {
      #expect(snapshot.stepsDone == 0 && reason == "test")
    }
  }
}
